"""Runs inside vLLM's workers: what a publication staged, against vLLM's own loader of the checkpoint's tensors."""

from pathlib import Path
from typing import Any

import torch


def differing_parameters(worker: Any, path: str) -> tuple[int, list[str]]:
    """(parameters compared, those whose bits differ): staged weights and `load_weights` of the checkpoint at `path`,
    each into fresh parameters in checkpoint format that begin as NaN."""
    from safetensors.torch import load_file
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload
    from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor

    from megarl.rollout.recording import _put_back

    engine = worker.weight_transfer_engine
    model, receiver, recording = engine.model, engine._receiver, engine._recording
    initialize_layerwise_reload(model)
    try:
        fresh: dict[str, torch.Tensor] = {}
        kept = []
        for name, layer in model.named_modules():
            for parameter_name, parameter in list(layer.named_parameters(recurse=False)):
                key = f"{name}.{parameter_name}"
                if key not in receiver.parameters:
                    continue
                loader = _get_original_loader(parameter)
                if parameter.is_meta:
                    made = materialize_meta_tensor(parameter)
                    made.weight_loader = loader
                    setattr(layer, parameter_name, made)
                else:  # biases are never on meta: the loader writes into the live one, which is put back below
                    made = parameter
                    kept.append((parameter, parameter.data.clone()))
                    parameter.weight_loader = loader
                made.data.fill_(torch.nan)
                fresh[key] = made
        for file in sorted(Path(path).glob("*.safetensors")):
            model.load_weights(load_file(file).items())
        wrong = []
        for key, loaded in fresh.items():
            ours = torch.full_like(loaded.data, torch.nan)
            if key in recording.padded:
                ours.zero_()
            receiver.fill(key, ours)
            bits = {2: torch.int16, 4: torch.int32}[ours.element_size()]
            if not torch.equal(ours.view(bits), loaded.data.view(bits)):
                wrong.append(key)
        for parameter, before in kept:
            parameter.data.copy_(before)
    finally:
        _put_back(model, engine.model_config)
    return len(fresh), wrong
