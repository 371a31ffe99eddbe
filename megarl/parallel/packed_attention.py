"""Causal attention within each sequence of a packed stream, in batched torch operations: for the CPU, and for float32
on CUDA, which flash attention does not take.

S = packed tokens, N = query heads, G = key/value heads, Q = N / G query heads that share a key, D = head dimension,
B = sequences of a block, L = the longest of them.

What is true:
* A call for each sequence costs more than short sequences do. They are taken together in blocks of similar length,
  padded to the longest: one batched product per block for all of its sequences and heads. Query heads that share a key
  are rows of one product, so keys and values are not repeated.
* Long sequences have a call of `scaled_dot_product_attention` each, which leaves out what lies above the diagonal.
* Nothing of size S x S exists. The scores of a block, [B, N, L, L], take at most BLOCK_BYTES, those of one sequence at
  most N LONGEST_BATCHED^2 numbers; they are not kept for backward, which computes them again.
* Products are float32 (float64 for float64 inputs), results are rounded once; long sequences in bfloat16 use its
  kernels where the CPU has some.
* Padding lies behind a sequence's last token, where causal attention does not look, so it needs no mask of its own.
* What a sequence gets depends on the others of its block by rounding only.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megarl.parallel.linear import needs_widening

BLOCK_BYTES = 1 << 20
"""Scores of a block. They and their exponentials stay in a core's share of the cache."""
LONGEST_BATCHED = 128
"""Longer sequences have a call each: about where it becomes the faster one (tools/bench_attention.py)."""
LEAST_FILLED = 0.75
"""No sequence of a block is shorter than this share of the longest."""


def attend_packed(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], *, scale: float) -> Tensor:
    """Attention of each token to those before it in its sequence, and to itself.

    Args:
        query: [S, N, D].
        key, value: [S, G, D], N a multiple of G; query heads n Q to n Q + Q - 1 share key head n.
        lengths: of the sequences, in order; their sum is S.
        scale: factor of the scores.

    Returns:
        [S, N, D] in the dtype of the inputs, differentiable.
    """
    plan = _plan(lengths, query.shape[1], query.device)
    if not plan.blocks:
        return torch.cat([_attend_one(query, key, value, rows, scale) for rows in plan.long])
    attended = _BlockedAttention.apply(query, key, value, plan.blocks, scale)
    if not plan.long:
        return attended
    rows_of_long = torch.cat([torch.arange(rows.start, rows.stop, device=query.device) for rows in plan.long])
    longer = [_attend_one(query, key, value, rows, scale) for rows in plan.long]
    return attended.index_copy(0, rows_of_long, torch.cat(longer))


class Block(NamedTuple):
    """Sequences that are multiplied together."""

    size: int
    """B."""
    longest: int
    """L."""
    row_BL: Tensor
    """[B L] int64: stream rows; behind a sequence's end its last one."""
    kept_K: Tensor
    """int64: the entries of `row_BL` that are no padding."""


class Plan(NamedTuple):
    """How the sequences of a stream are dealt with; every row of the stream is in exactly one part."""

    blocks: tuple[Block, ...]
    long: tuple[slice, ...]
    """Rows of the sequences that have a call each, in order."""


@functools.lru_cache(maxsize=16)
def _plan(lengths: tuple[int, ...], num_heads: int, device: torch.device) -> Plan:
    """Cached, because every layer of a pass asks the same."""
    starts = [0, *itertools.accumulate(lengths)]
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    long = sorted(index for index in order if lengths[index] > LONGEST_BATCHED)
    short = order[len(long) :]
    blocks = tuple(
        _make_block([starts[index] for index in members], [lengths[index] for index in members], device)
        for members in _group([(index, lengths[index]) for index in short], num_heads)
    )
    return Plan(blocks, tuple(slice(starts[index], starts[index + 1]) for index in long))


def _group(sequences: Sequence[tuple[int, int]], num_heads: int) -> list[list[int]]:
    """The indices of (index, length), which fall in length, in groups."""
    groups: list[list[int]] = []
    longest = most = 0
    for index, length in sequences:
        if not groups or len(groups[-1]) == most or length < LEAST_FILLED * longest:
            groups.append([])
            longest, most = length, max(1, BLOCK_BYTES // (4 * num_heads * length**2))
        groups[-1].append(index)
    return groups


def _make_block(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Block:
    longest = lengths[0]
    length_B1, start_B1 = np.array(lengths)[:, None], np.array(starts)[:, None]
    position_L = np.arange(longest)
    row_BL = (start_B1 + np.minimum(position_L, length_B1 - 1)).ravel()
    kept_K = np.flatnonzero(position_L < length_B1)
    return Block(len(lengths), longest, torch.from_numpy(row_BL).to(device), torch.from_numpy(kept_K).to(device))


def _attend_one(query: Tensor, key: Tensor, value: Tensor, rows: slice, scale: float) -> Tensor:
    """[rows, N, D] of one sequence."""
    shared = query.shape[1] // key.shape[1]
    widen = needs_widening(query)
    q, k, v = (tensor[rows].float() if widen else tensor[rows] for tensor in (query, key, value))
    # The CPU flash kernel wants as many key heads as query heads.
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1).to(query.dtype)


class _BlockedAttention(torch.autograd.Function):
    """Attention of the sequences in `blocks`; 0 in the rows of others."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.blocks, ctx.scale = blocks, scale
        out = query.new_zeros(query.shape)
        for block in blocks:
            q, k, v = _operands(query, key, value, block, scale)
            weighted = torch.bmm(_probabilities(q, k, block.longest), v)
            _put_queries(out, weighted, block)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grads = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        for block in ctx.blocks:
            q, k, v = _operands(query, key, value, block, ctx.scale)
            # Padding's own results are dropped, so nothing may flow back from them.
            grad = _queries(_without_padding(grad_out, block), block, groups=key.shape[1], dtype=q.dtype)
            weights = _probabilities(q, k, block.longest)
            _put_keys(grads[2], torch.bmm(weights.transpose(1, 2), grad), block)
            grad_weights = torch.bmm(grad, v.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            _put_queries(grads[0], torch.bmm(grad_scores, k).mul_(ctx.scale), block)
            _put_keys(grads[1], torch.bmm(grad_scores.transpose(1, 2), q), block)
        return *grads, None, None


def _operands(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(query [B G, Q L, D] times the scale, key and value [B G, L, D]) in the dtype of the products."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    q = _queries(query.index_select(0, block.row_BL), block, groups=key.shape[1], dtype=dtype).mul_(scale)
    k, v = (_keys(tensor.index_select(0, block.row_BL), block, dtype=dtype) for tensor in (key, value))
    return q, k, v


def _probabilities(q: Tensor, k: Tensor, longest: int) -> Tensor:
    """[B G, Q L, L]: softmax of the scores up to the token itself."""
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(-1, longest, longest).add_(_above_diagonal(longest, scores.dtype, scores.device))
    return torch.softmax(scores, -1)


@functools.lru_cache(maxsize=64)
def _above_diagonal(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, size]: -inf above the diagonal, else 0."""
    return torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu_(1)


def _queries(rows_BL: Tensor, block: Block, *, groups: int, dtype: torch.dtype) -> Tensor:
    """[B L, N, D] as [B G, Q L, D]."""
    _, heads, size = rows_BL.shape
    shared = heads // groups
    out = rows_BL.new_empty((block.size, groups, shared, block.longest, size), dtype=dtype)
    out.copy_(rows_BL.view(block.size, block.longest, groups, shared, size).permute(0, 2, 3, 1, 4))
    return out.view(block.size * groups, shared * block.longest, size)


def _keys(rows_BL: Tensor, block: Block, *, dtype: torch.dtype) -> Tensor:
    """[B L, G, D] as [B G, L, D]."""
    return _queries(rows_BL, block, groups=rows_BL.shape[1], dtype=dtype)


def _put_queries(out: Tensor, values: Tensor, block: Block) -> None:
    """Write [B G, Q L, D] into the stream's rows [S, N, D], without the padding."""
    heads, size = out.shape[1:]
    rows = values.view(block.size, heads, block.longest, size).transpose(1, 2)
    kept = rows.reshape(-1, heads, size).index_select(0, block.kept_K)
    out.index_copy_(0, block.row_BL.index_select(0, block.kept_K), kept.to(out.dtype))


_put_keys = _put_queries
"""[B G, L, D] into [S, G, D] is the same with one query head to a key."""


def _without_padding(rows_S: Tensor, block: Block) -> Tensor:
    """[B L, N, D] of the stream's rows; 0 in the padding."""
    taken = rows_S.new_zeros((block.row_BL.shape[0], *rows_S.shape[1:]))
    row_K = block.row_BL.index_select(0, block.kept_K)
    return taken.index_copy_(0, block.kept_K, rows_S.index_select(0, row_K))
