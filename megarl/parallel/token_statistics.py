"""What a shard of the vocabulary must say about a token's logits, and how shards are merged, exactly.

T = tokens, K = numbers per token (4, or 6 with the expected q), W = shards being merged.

With z a logit, m the shard's largest, x = (z - m) * scale and scale = 1 / temperature, a shard holds per token
  m,  s = sum e^x,  t = sum e^x x,  z of the target (-inf elsewhere),
and for expected q  u = sum e^2x,  v = sum e^2x x.

What is true:
* Merging is exact and associative: moving a shard's maximum by g = (m - M) * scale <= 0 turns (s, t, u, v) into
  e^g s, e^g (t + g s), e^2g u, e^2g (v + g u). Blocks of columns, ranks, and blocks on ranks merge by one function.
* All ranks of a group merge the same numbers in the same order, so their results are equal to the last bit.
* logp <= 0 and entropy >= 0 hold in floating point, since s >= 1 where M is held and t <= 0.
* With S, E = t / s and U, V after the merge: logp = (z_target - M) * scale - log S, H = log S - E, and
  N = sum p^2 (log p + H) = (V - E U) / S^2, because log p + H = x - E.

Gradient, with d = (z - M) * scale and upstream gradients g_logp, g_entropy (p = e^d / S):
  d/dz = scale * (g_logp (1[target] - p) - g_entropy p (log p + H)) = e^d (constant + slope d) + target 1[target].
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

EXPONENT_FLOOR = -1e4
"""x is clamped to this: e^x is 0 in every dtype, and 0 * floor is 0 where 0 * -inf would be NaN."""
MAXIMUM, SUM, DOT, TARGET, SQUARE_SUM, SQUARE_DOT = range(6)
"""Columns of a [T, K] table: m, s, t, z of the target, u, v."""


class TokenDistribution(NamedTuple):
    """Per token, float32 (float64 for float64 logits), natural logarithms, the same on every rank of the group."""

    logp_T: Tensor
    """log p of the target; -inf for a target that no rank holds."""
    entropy_T: Tensor
    """H = -sum p log p over the vocabulary."""
    expected_q_T: Tensor | None
    """N = sum p^2 (log p + H), without gradient; None unless asked for."""


class MergedStatistics(NamedTuple):
    """Statistics over the whole vocabulary, each [T]."""

    max_T: Tensor
    """Largest raw logit."""
    sum_T: Tensor
    """Sum of exp((z - max) * scale)."""
    logp_T: Tensor
    entropy_T: Tensor
    expected_q_T: Tensor | None


class TokenGradient(NamedTuple):
    """Per token, what turns a logit z into its gradient: e^d (constant + slope d) + target 1[target]."""

    max_T: Tensor
    scale: float | Tensor
    """d = (z - max) * scale."""
    constant_T: Tensor
    slope_T: Tensor | None
    """None where the entropy has no gradient."""
    target_T: Tensor | None
    """None where the log-prob has no gradient."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_statistics(num_tokens: int, *, dtype: torch.dtype, device: torch.device, with_expected_q: bool) -> Tensor:
    """[T, K] of a shard without columns."""
    table_TK = torch.zeros(num_tokens, 6 if with_expected_q else 4, dtype=dtype, device=device)
    table_TK[:, MAXIMUM] = table_TK[:, TARGET] = -torch.inf
    return table_TK


def gather_shards(shard_TK: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[W, T, K]: the one collective. T is the same on all ranks of the group, so T = 0 skips it on all of them."""
    if group is None or group.size() == 1 or shard_TK.shape[0] == 0:
        return shard_TK[None]
    gathered = shard_TK.new_empty(group.size() * shard_TK.shape[0], shard_TK.shape[1])
    # torch 2.13 renamed the collective and warns at the old name, which earlier versions have.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(gathered, shard_TK, group=group)
    return gathered.view(group.size(), *shard_TK.shape)


def combine_shards(shard_WTK: Tensor, scale: float | Tensor) -> Tensor:
    """[T, K] of the union of disjoint shards (see module docstring)."""
    max_WT = shard_WTK[..., MAXIMUM]
    max_T = max_WT.amax(0)
    # A token that is -inf in all these shards has no maximum to move to; its sums are 0 and stay 0.
    origin_T = torch.where(max_T == -torch.inf, 0.0, max_T)
    gap_WT = ((max_WT - origin_T) * scale).clamp(min=EXPONENT_FLOOR)
    factor_WT = gap_WT.exp()
    columns = [
        max_T,
        *_moved_sums(shard_WTK[..., SUM], shard_WTK[..., DOT], gap_WT, factor_WT),
        shard_WTK[..., TARGET].amax(0),
    ]
    if shard_WTK.shape[-1] > SQUARE_SUM:
        columns += _moved_sums(shard_WTK[..., SQUARE_SUM], shard_WTK[..., SQUARE_DOT], gap_WT, factor_WT.square())
    return torch.stack(columns, dim=-1)


def _moved_sums(sum_WT: Tensor, dot_WT: Tensor, gap_WT: Tensor, factor_WT: Tensor) -> tuple[Tensor, Tensor]:
    return (factor_WT * sum_WT).sum(0), (factor_WT * (dot_WT + gap_WT * sum_WT)).sum(0)


def merge_over_ranks(shard_TK: Tensor, scale: float | Tensor, group: dist.ProcessGroup | None) -> MergedStatistics:
    """What the whole vocabulary says of each token, from this rank's shard, by one collective."""
    return finish_statistics(combine_shards(gather_shards(shard_TK, group), scale), scale)


def finish_statistics(table_TK: Tensor, scale: float | Tensor) -> MergedStatistics:
    """Log-prob, entropy and expected q from the statistics of the whole vocabulary."""
    max_T, sum_T = table_TK[:, MAXIMUM].clone(), table_TK[:, SUM].clone()
    mean_T = table_TK[:, DOT] / sum_T
    log_sum_T = sum_T.log()
    logp_T = (table_TK[:, TARGET] - max_T) * scale - log_sum_T
    expected_q_T = None
    if table_TK.shape[1] > SQUARE_SUM:
        expected_q_T = (table_TK[:, SQUARE_DOT] - mean_T * table_TK[:, SQUARE_SUM]) / sum_T.square()
    return MergedStatistics(max_T, sum_T, logp_T, log_sum_T - mean_T, expected_q_T)


def token_gradient(
    grad_logp_T: Tensor | None,
    grad_entropy_T: Tensor | None,
    *,
    max_T: Tensor,
    sum_T: Tensor,
    entropy_T: Tensor,
    scale: float | Tensor,
) -> TokenGradient:
    """Coefficients of d/dz; the division by the normaliser is here, once per token and not once per logit."""
    constant_T = torch.zeros_like(sum_T)
    slope_T = target_T = None
    if grad_logp_T is not None:
        target_T = grad_logp_T * scale
        constant_T = constant_T - target_T / sum_T
    if grad_entropy_T is not None:
        slope_T = -grad_entropy_T * scale / sum_T
        constant_T = constant_T + slope_T * (entropy_T - sum_T.log())
    return TokenGradient(max_T, scale, constant_T, slope_T, target_T)


def inverse_temperature(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """1 / temperature, without gradient."""
    return 1.0 / temperature.detach().to(dtype) if isinstance(temperature, Tensor) else 1.0 / temperature


def rows_of(scale: float | Tensor, rows: slice) -> float | Tensor:
    """The scale of these tokens."""
    return scale[rows] if isinstance(scale, Tensor) else scale


def locate_targets(
    target_T: Tensor,
    *,
    num_tokens: int,
    num_columns: int,
    vocab_start: int,
    vocab_stop: int,
    temperature: float | Tensor,
) -> tuple[Tensor, int]:
    """([T] int64: the column of this rank that holds the target, -1 where another rank does; number of valid columns).

    ValueError unless the targets, the range of token ids and the temperature fit `num_tokens` x `num_columns`.
    """
    if target_T.shape != (num_tokens,) or target_T.dtype != torch.int64:
        raise ValueError(
            f"expected one int64 target for each of {num_tokens} tokens, found {target_T.dtype} targets "
            f"{tuple(target_T.shape)}"
        )
    if vocab_start < 0 or vocab_stop - vocab_start > num_columns:
        raise ValueError(
            f"token ids {vocab_start} to {vocab_stop} do not fit in {num_columns} vocabulary columns; pass the ids "
            "this rank's columns hold, without padding"
        )
    if isinstance(temperature, Tensor):
        if temperature.shape != target_T.shape:
            raise ValueError(
                f"temperature has shape {tuple(temperature.shape)}; expected one number or one per token "
                f"{tuple(target_T.shape)}"
            )
    elif not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")
    num_valid = max(0, vocab_stop - vocab_start)
    column_T = target_T - vocab_start
    return torch.where((column_T >= 0) & (column_T < num_valid), column_T, -1), num_valid
