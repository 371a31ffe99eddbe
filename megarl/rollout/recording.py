"""What a worker's model wants of the checkpoint's tensors: vLLM's own `load_weights` over placeholders.

The model's parameters are on the meta device meanwhile and come back untouched: a recording loads nothing.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader, get_layerwise_info

from megarl.reshard.record import Recorder, Recording
from megarl.rollout.vllm_versions import disable_mtp_completeness_check, is_deferred_attention_layer

_log = logging.getLogger("vllm.megarl")
_SHOWN = 8


def find_tied_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers all of whose parameters are an earlier layer's: an output layer tied to the embedding."""
    owned: set[int] = set()
    tied = {}
    for name, layer in model.named_modules():
        addresses = {parameter.data_ptr() for parameter in layer.parameters(recurse=False) if parameter.numel()}
        if addresses and addresses <= owned:
            tied[name] = layer
        owned |= addresses
    return tied


def record_model(
    model: nn.Module, model_config: Any, tensors: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> Recording:
    """Run `load_weights` over placeholders of the checkpoint's tensors.

    Parameters are named `layer.parameter`. One that its loader fills by more than slices is left to that loader, and
    a line in the log names it.

    Raises:
        ValueError: the tensors do not fill the model; names the parameters.
    """
    tied = find_tied_layers(model)
    initialize_layerwise_reload(model)
    try:
        parameters = dict(_loadable(model, tied))
        recorder = Recorder(parameters)
        for parameter in parameters.values():
            _follow(parameter, recorder)

        def load(tensor: str, values: Tensor) -> None:
            model.load_weights([(tensor, values)])  # type: ignore[operator]

        with disable_mtp_completeness_check():
            for name, shape in tensors.items():
                recorder.record(load, name, shape, dtype)
        recording = recorder.finish()
    finally:
        _put_back(model, model_config)
    for name, reason in recording.whole.items():
        _log.warning("%s reaches this engine whole and goes through vLLM's own loader: %s", name, reason)
    if recording.short:
        short = [f"{name} ({filled} of {size} elements)" for name, (filled, size) in recording.short.items()]
        raise ValueError(
            f"the policy's tensors do not fill {len(short)} parameters of the model: "
            f"{', '.join(short[:_SHOWN])}{', ...' if len(short) > _SHOWN else ''}; engine and policy must run the "
            "same model"
        )
    return recording


def _loadable(model: nn.Module, tied: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters that a checkpoint fills: not attention's own scales, nor those of tied layers."""
    for name, layer in model.named_modules():
        if name in tied or is_deferred_attention_layer(layer):
            continue
        for parameter_name, parameter in layer.named_parameters(recurse=False):
            yield f"{name}.{parameter_name}", parameter


def _follow(parameter: Tensor, recorder: Recorder) -> None:
    """Call the parameter's own loader, not vLLM's wrapper that waits for whole layers, and say for which parameter."""
    loader = _get_original_loader(parameter)

    def watched_loader(*args: Any, **kwargs: Any) -> Any:
        with recorder.loading(parameter):
            return loader(*args, **kwargs)

    watched_loader.__wrapped__ = loader  # type: ignore[attr-defined]
    watched_loader.__name__ = "online_process_loader"  # by this name vLLM's own code unwraps and renews it
    parameter.weight_loader = watched_loader  # type: ignore[attr-defined]


def _put_back(model: nn.Module, model_config: Any) -> None:
    """End the reload that loaded nothing: vLLM puts the parameters back where a layer has no element to load."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        for parameter in layer.parameters(recurse=False):
            parameter.weight_loader = _get_original_loader(parameter)  # type: ignore[attr-defined]
        if info.can_load():
            info.load_numel, info.load_numel_total = 0, 0
    finalize_layerwise_reload(model, model_config)
