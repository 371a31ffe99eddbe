"""Forward and backward over micro-batches, through Megatron's own pipeline schedule.

R = response tokens of a micro-batch. Only the last pipeline stage has token distributions; its tensor ranks all compute
the same loss, each on its own vocabulary shard.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megarl.parallel.batches import PackedMicroBatch, PackedSamples
from megarl.parallel.vocab import TokenDistribution
from megarl.policy.model import PolicyModel

TokenFunction = Callable[[int, PackedMicroBatch, TokenDistribution], tuple[Tensor, Any]]
"""(micro-batch index, batch, its tokens' distributions) -> (loss to differentiate, what the caller wants back)."""


class Passes:
    """Runs a function of the response tokens' distributions over micro-batches, with or without gradients."""

    def __init__(self, *, device: torch.device) -> None:
        self._device = device

    def run(
        self,
        chunks: Sequence[PolicyModel | DistributedDataParallel],
        batches: Sequence[PackedSamples],
        function: TokenFunction,
        *,
        temperature: float,
        backward: bool,
        with_expected_q: bool = False,
    ) -> list[Any]:
        """One pass of the rank's chunks over `batches`, probabilities being softmax(logits / temperature).

        The function's second results in order on the last stage, [] elsewhere.
        """
        config = chunks[0].config
        # The loss is already divided by the global normaliser, so `num_tokens` must not scale the gradient again.
        config.finalize_model_grads_func = lambda chunks, _num_tokens=None, **kwargs: finalize_model_grads(
            chunks, None, **kwargs
        )
        config.no_sync_func = _no_sync(chunks) if backward else None
        longest = max(batch.num_stream_tokens for batch in batches)

        def forward_step(iterator: Any, chunk: Any) -> tuple[Tensor, Callable[..., Any]]:
            index, samples = next(iterator)
            batch = samples.to(self._device)
            output = chunk(batch)
            head: PolicyModel = chunk.module if isinstance(chunk, DistributedDataParallel) else chunk

            def loss(output: Tensor) -> tuple[Tensor, Tensor, Any]:
                distribution = head.distribution(
                    output, batch.target_R, temperature=temperature, with_expected_q=with_expected_q
                )
                value, result = function(index, batch, distribution)
                # Megatron sums this count; the gradient's normaliser is already in `value`.
                return value, torch.zeros((), dtype=torch.int, device=self._device), result

            return output, loss

        results = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(list(enumerate(batches))) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(batches),
            seq_length=longest,
            micro_batch_size=1,
            forward_only=not backward,
        )
        return results if parallel_state.is_pipeline_last_stage() else []


def _no_sync(chunks: Sequence[PolicyModel | DistributedDataParallel]) -> Any:
    """What keeps gradients from being reduced before the last micro-batch: Megatron wants one, or one per chunk."""
    functions = [chunk.no_sync for chunk in chunks if isinstance(chunk, DistributedDataParallel)]
    return functions if len(functions) > 1 else next(iter(functions), None)
