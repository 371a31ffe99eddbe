"""vLLM 0.26 beside vLLM 0.32: what megarl asks of vLLM and only the newer one has.

0.26.0 is the last vLLM for torch 2.11, the torch that has run on a GPU; 0.32.0 is what the CPU stack and the tests
run. Each function says what the older one does instead.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn


def is_deferred_attention_layer(layer: nn.Module) -> bool:
    """Whether vLLM's layerwise reload passes the layer over: attention, whose scales no checkpoint has to fill."""
    from vllm.model_executor.layers import attention

    if hasattr(attention, "is_deferred_attention_layer"):
        return bool(attention.is_deferred_attention_layer(layer))
    return isinstance(layer, attention.Attention | attention.MLAAttention)  # as 0.26's reload asks


def disable_mtp_completeness_check() -> AbstractContextManager[None]:
    """A load of single tensors into a model with multi-token prediction layers; 0.26 does not check those."""
    try:
        from vllm.model_executor.model_loader import mtp_validation
    except ImportError:
        return nullcontext()
    return mtp_validation.disable_mtp_completeness_check()


def weights_label(version: int) -> str:
    """How vLLM labels weights of megarl's; its own label for those that it loaded itself is "default"."""
    return str(version) if version else "default"


def sampled_versions(completion: Any) -> set[str]:
    """Labels of the weights under which vLLM says a completion was sampled; 0.26 labels nothing, so none."""
    return {span.version for span in getattr(completion, "weight_versions", None) or ()}


async def label_weights(llm: Any, version: str) -> None:
    """Label the weights that an engine (AsyncLLM) samples with from now on; nothing in 0.26, which has no labels."""
    if hasattr(llm, "update_weight_version"):
        await llm.update_weight_version(version)
