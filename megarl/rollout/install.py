"""Staged weights into a worker's model, layer by layer, through vLLM's layerwise reload.

A layer is made in checkpoint format, filled, processed into what its kernels read (packed, quantised) and copied into
the tensors that its kernels hold, so that captured graphs stay valid and at most one layer exists twice.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info

from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.record import WHOLE, Recording
from megarl.rollout.recording import find_tied_layers
from megarl.rollout.vllm_versions import disable_mtp_completeness_check


def install_weights(
    model: nn.Module, model_config: Any, receiver: WeightReceiver, recording: Recording, *, device: torch.device
) -> None:
    """Put the version that the receiver has staged into the model. No request may run meanwhile."""
    tied = find_tied_layers(model)
    initialize_layerwise_reload(model)
    with torch.device(device):
        _load_whole_tensors(model, receiver, recording)
        for name, layer in model.named_modules():
            _install_layer(name, layer, receiver, recording)
        finalize_layerwise_reload(model, model_config)
        # A tied output layer got its weight through the embedding: nothing told it to renew what it made of it.
        for layer in tied.values():
            layer.quant_method.process_weights_after_loading(layer)  # type: ignore[union-attr, operator]
    if device.type == "cuda":
        # The next version may fill the staging memory as soon as this returns; and the time it took is true.
        torch.cuda.synchronize(device)


def _load_whole_tensors(model: nn.Module, receiver: WeightReceiver, recording: Recording) -> None:
    """What no slice expresses goes the way of a checkpoint: whole tensors to the model's loaders."""
    for tensor in recording.whole:
        values = torch.empty(receiver.offer.tensors[tensor], dtype=receiver.offer.dtype)
        receiver.fill(WHOLE + tensor, values)
        with disable_mtp_completeness_check():
            model.load_weights([(tensor, values)])  # type: ignore[operator]


def _install_layer(name: str, layer: nn.Module, receiver: WeightReceiver, recording: Recording) -> None:
    info = get_layerwise_info(layer)
    if not info.can_load():  # its last tensor came through its own loader
        return
    parameters = dict(layer.named_parameters(recurse=False))
    left = [key for key in parameters if f"{name}.{key}" in recording.by_loader]
    if left and info.load_numel == 0:
        raise RuntimeError(f"the model's loader left {', '.join(left)} of {name} empty; start this engine again")
    ours = {key: parameter for key, parameter in parameters.items() if f"{name}.{key}" in receiver.parameters}
    if not ours:
        return
    # vLLM replays the loads it has noted once the layer is complete: ours is one load a parameter.
    loaders = {parameter_name: parameter.weight_loader for parameter_name, parameter in ours.items()}  # type: ignore[attr-defined]
    for parameter_name, parameter in ours.items():
        load = _filler(f"{name}.{parameter_name}", receiver, recording)
        parameter.weight_loader = load  # type: ignore[attr-defined]
        info.loaded_weights.append((parameter_name, inspect.signature(load).bind(parameter)))
    _layerwise_process(layer, info)
    for parameter_name, parameter in ours.items():  # vLLM keeps these objects for the next reload
        parameter.weight_loader = loaders[parameter_name]  # type: ignore[attr-defined]


def _filler(name: str, receiver: WeightReceiver, recording: Recording) -> Callable[[Tensor], None]:
    def fill(param: Tensor) -> None:
        if name in recording.padded:
            param.data.zero_()
        receiver.fill(name, param.data)

    return fill
