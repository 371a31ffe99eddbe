"""Token statistics and gradients from hidden states and output weight, in blocked torch operations, for the CPU.

T = tokens, H = hidden size, C = this rank's valid vocabulary rows, B = tokens and D = vocabulary rows of a block,
K = 4 or 6 (token_statistics.py).

What is true:
* Logits exist as one [B, D] block at a time, which turns into its exponentials forward and into its gradient backward.
  Scratch does not grow with T x C: two blocks, and for bf16 the float32 copies of the operands of one block.
* bf16 operands are multiplied and summed in float32, and neither logits nor their gradients are rounded to bf16:
  results differ from those of a bf16 logits tensor by the rounding of that tensor.
* The vocabulary is the outer loop. A block of the weight's gradient is summed over all tokens in float32 and rounded
  once, so there is no second [C, H] buffer. The hidden states' gradient is summed over the vocabulary in float32, in
  the returned tensor itself when it is float32, and rounded once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from megarl.parallel.token_statistics import (
    TARGET,
    TokenGradient,
    combine_shards,
    empty_statistics,
    rows_of,
    statistics_dtype,
)
from megarl.parallel.vocab_blocked import gradient_block, reduce_block, rows_of_gradient

BLOCK_BYTES = 2 << 20
"""One block of logits; two exist."""
OPERAND_BYTES = 4 << 20
"""One block of weight rows, or of tokens' hidden states, in the statistics dtype."""
MAX_BLOCK_COLUMNS = 1024


def shard_statistics(
    hidden_TH: Tensor, weight_CH: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool
) -> Tensor:
    """See `FusedLinearKernels.shard_statistics`."""
    dtype, device = statistics_dtype(hidden_TH.dtype), hidden_TH.device
    table_TK = empty_statistics(hidden_TH.shape[0], dtype=dtype, device=device, with_expected_q=with_expected_q)
    blocks = _Blocks(hidden_TH, weight_CH)
    for columns in blocks.columns():
        weight_DH = blocks.weight(columns)
        for rows in blocks.rows():
            logits_BD = blocks.logits(rows, weight_DH)
            block_BK = torch.empty_like(table_TK[rows])
            _, owned_B, held_B1 = _held_target(column_T[rows], columns)
            block_BK[:, TARGET] = torch.where(owned_B, logits_BD.gather(1, held_B1)[:, 0], -torch.inf)
            scale_B = rows_of(scale, rows)
            weight_BD = blocks.second(logits_BD)
            reduce_block(logits_BD, block_BK, scale=scale_B, shifted=logits_BD, weight=weight_BD)
            table_TK[rows] = combine_shards(torch.stack((table_TK[rows], block_BK)), scale_B)
    return table_TK


def write_gradients(
    grad_hidden_TH: Tensor | None,
    grad_weight_CH: Tensor | None,
    hidden_TH: Tensor,
    weight_CH: Tensor,
    column_T: Tensor,
    *,
    gradient: TokenGradient,
) -> None:
    """See `FusedLinearKernels.write_gradients`."""
    blocks = _Blocks(hidden_TH, weight_CH)
    hidden_sum_TH = _accumulator(grad_hidden_TH, blocks.dtype)
    for columns in blocks.columns():
        weight_DH = blocks.weight(columns)
        weight_sum_DH = None if grad_weight_CH is None else _accumulator(grad_weight_CH[columns], blocks.dtype)
        for rows in blocks.rows():
            logits_BD = blocks.logits(rows, weight_DH)
            rows_gradient = rows_of_gradient(gradient, rows)
            gradient_block(logits_BD, logits_BD, gradient=rows_gradient, scratch=(logits_BD, blocks.second(logits_BD)))
            if rows_gradient.target_T is not None:
                _, owned_B, held_B1 = _held_target(column_T[rows], columns)
                logits_BD.scatter_add_(1, held_B1, torch.where(owned_B, rows_gradient.target_T, 0.0)[:, None])
            if hidden_sum_TH is not None:
                hidden_sum_TH[rows].addmm_(logits_BD, weight_DH)
            if weight_sum_DH is not None:
                weight_sum_DH.addmm_(logits_BD.t(), blocks.hidden(rows))
        _round_into(None if grad_weight_CH is None else grad_weight_CH[columns], weight_sum_DH)
    _round_into(grad_hidden_TH, hidden_sum_TH)


class _Blocks:
    """The blocks of one call: their sizes, and scratch that all of them share."""

    def __init__(self, hidden_TH: Tensor, weight_CH: Tensor) -> None:
        self.dtype = statistics_dtype(hidden_TH.dtype)
        self._hidden_TH, self._weight_CH = hidden_TH, weight_CH
        num_tokens, hidden_size = hidden_TH.shape
        operand_rows = max(16, OPERAND_BYTES // max(1, hidden_size * self.dtype.itemsize))
        self._num_columns = max(1, min(weight_CH.shape[0], operand_rows, MAX_BLOCK_COLUMNS))
        block_rows = max(1, BLOCK_BYTES // (self._num_columns * self.dtype.itemsize))
        self._num_rows = max(1, min(num_tokens, operand_rows, block_rows))
        self._scratch = torch.empty(2, self._num_rows * self._num_columns, dtype=self.dtype, device=hidden_TH.device)
        self._hidden_copy = self._copy_buffer(self._num_rows)
        self._weight_copy = self._copy_buffer(self._num_columns)

    def columns(self) -> Iterator[slice]:
        return _slices(self._weight_CH.shape[0], self._num_columns)

    def rows(self) -> Iterator[slice]:
        return _slices(self._hidden_TH.shape[0], self._num_rows)

    def weight(self, columns: slice) -> Tensor:
        """[D, H] in the statistics dtype; valid until the next call."""
        return _in_dtype(self._weight_CH[columns], self._weight_copy)

    def hidden(self, rows: slice) -> Tensor:
        """[B, H] in the statistics dtype; valid until the next call."""
        return _in_dtype(self._hidden_TH[rows], self._hidden_copy)

    def logits(self, rows: slice, weight_DH: Tensor) -> Tensor:
        """[B, D], contiguous, in the first scratch block; valid until the next call."""
        hidden_BH = self.hidden(rows)
        shape = (hidden_BH.shape[0], weight_DH.shape[0])
        return torch.mm(hidden_BH, weight_DH.t(), out=self._scratch[0, : shape[0] * shape[1]].view(shape))

    def second(self, logits_BD: Tensor) -> Tensor:
        """The second scratch block, of the shape of the first."""
        return self._scratch[1, : logits_BD.numel()].view(logits_BD.shape)

    def _copy_buffer(self, rows: int) -> Tensor | None:
        if self._hidden_TH.dtype == self.dtype:
            return None
        return torch.empty(rows, self._hidden_TH.shape[1], dtype=self.dtype, device=self._hidden_TH.device)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _in_dtype(block_RH: Tensor, copy: Tensor | None) -> Tensor:
    return block_RH if copy is None else copy[: block_RH.shape[0]].copy_(block_RH)


def _held_target(column_B: Tensor, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """(target's column within the block, whether it is there, [B, 1] that column or 0)."""
    within_B = column_B - columns.start
    owned_B = (within_B >= 0) & (within_B < columns.stop - columns.start)
    return within_B, owned_B, torch.where(owned_B, within_B, 0)[:, None]


def _accumulator(result: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Zeros to sum into: the result itself where its dtype is that of the sum."""
    if result is None:
        return None
    return result.zero_() if result.dtype == dtype else torch.zeros(result.shape, dtype=dtype, device=result.device)


def _round_into(result: Tensor | None, total: Tensor | None) -> None:
    if result is not None and total is not None and total.dtype != result.dtype:
        result.copy_(total)
