"""Forward and backward over micro-batches, through Megatron's own pipeline schedule.

R = response tokens of a micro-batch. Only the last pipeline stage has logits; its tensor ranks all compute the same
loss, each on its own vocabulary shard.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megarl.parallel.packing import PackedMicroBatch
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from megarl.policy.model import PolicyModel

TokenFunction = Callable[[int, PackedMicroBatch, Tensor, Tensor], tuple[Tensor, Any]]
"""(micro-batch index, batch, logp_R, entropy_R) -> (loss to differentiate, what the caller wants back)."""


class Passes:
    """Runs a function of (logp, entropy) over micro-batches, with or without gradients."""

    def __init__(self, *, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device

    def run(
        self,
        model: PolicyModel | DistributedDataParallel,
        batches: Sequence[PackedMicroBatch],
        function: TokenFunction,
        *,
        temperature: float,
        backward: bool,
    ) -> list[Any]:
        """One pass over `batches`, probabilities being softmax(logits / temperature).

        The function's second results in order on the last stage, [] elsewhere.
        """
        config = model.config
        # The loss is already divided by the global normaliser, so `num_tokens` must not scale the gradient again.
        config.finalize_model_grads_func = lambda chunks, _num_tokens=None, **kwargs: finalize_model_grads(
            chunks, None, **kwargs
        )
        config.no_sync_func = getattr(model, "no_sync", None) if backward else None
        longest = max(batch.tokens_S.numel() for batch in batches)
        indexed = iter(list(enumerate(batches)))

        def forward_step(iterator: Any, chunk: Any) -> tuple[Tensor, Callable[..., Any]]:
            index, batch = next(iterator)
            batch = batch.to(self._device)
            output = chunk(batch)

            def loss(logits: Tensor) -> tuple[Tensor, Tensor, Any]:
                logp_R, entropy_R = self._logp_entropy(logits, batch, temperature)
                value, result = function(index, batch, logp_R, entropy_R)
                # Megatron sums this count; the gradient's normaliser is already in `value`.
                return value, torch.zeros((), dtype=torch.int, device=self._device), result

            return output, loss

        results = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=indexed,
            model=[model],
            num_microbatches=len(batches),
            seq_length=longest,
            micro_batch_size=1,
            forward_only=not backward,
        )
        return results if parallel_state.is_pipeline_last_stage() else []

    def _logp_entropy(self, logits: Tensor, batch: PackedMicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        group = parallel_state.get_tensor_model_parallel_group()
        start = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        return vocab_parallel_logp_entropy(
            logits,
            batch.target_R,
            vocab_start=start,
            vocab_stop=max(start, min(start + logits.shape[-1], self._vocab_size)),
            temperature=temperature,
            group=group if group.size() > 1 else None,
        )
