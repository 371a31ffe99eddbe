"""What a micro-batch reports of its tokens: sums, counts and maxima that merge exactly.

A metric is a ratio of two merged sums, so it does not depend on micro-batches, packing or ranks; a mean of means
cannot happen. Nothing here reads a value back to the host before `to_metrics`. T = packed response tokens,
N = len(SUM_NAMES), M = len(MAX_NAMES).

A token counts as clipped where clipping takes its gradient away: strict inequalities, a tie is not clipped.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from megarl.config.objective import ClipConfig, KlConfig
from megarl.objective.loss import LOG_RATIO_LIMIT, LossInputs, TokenLoss, policy_ratio

SUM_NAMES = (
    "tokens",
    "entropy",
    "logp",
    "policy_loss_weighted",
    "kl_loss_weighted",
    "kl",
    "kl_tokens",
    "old_minus_current",
    "ratio",
    "clipped_low",
    "clipped_high",
    "clipped_dual",
    "saturated",
    "advantage_positive",
    "advantage_negative",
)
"""Entries of `TokenSums.sum_N`, in order."""
MAX_NAMES = ("ratio", "negative_ratio")
"""Entries of `TokenSums.max_M`, in order: the largest ratio and minus the smallest."""


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Mergeable statistics of response tokens: `+` merges micro-batches.

    Across ranks: all-reduce `sum_N` with SUM and `max_M` with MAX over the data-parallel group.
    """

    sum_N: Tensor
    """float64: counts stay exact."""
    max_M: Tensor
    """float64; -inf where there was no token."""

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> "TokenSums":
        """The statistics of no token: the identity of `+`."""
        return cls(
            torch.zeros(len(SUM_NAMES), dtype=torch.float64, device=device),
            torch.full((len(MAX_NAMES),), -torch.inf, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "TokenSums") -> "TokenSums":
        return TokenSums(self.sum_N + other.sum_N, torch.maximum(self.max_M, other.max_M))


def merge_token_sums(parts: Iterable[TokenSums], *, device: torch.device | str = "cpu") -> TokenSums:
    """All parts added up; the identity where there is none."""
    return reduce(TokenSums.__add__, parts, TokenSums.zeros(device))


@torch.no_grad()
def collect_token_sums(clip: ClipConfig, kl: KlConfig, inputs: LossInputs, loss: TokenLoss) -> TokenSums:
    """Statistics of one micro-batch; `loss` is what `compute_token_loss` returned for `inputs`. T may be 0."""
    ratio_T = policy_ratio(inputs.logp_T, inputs.old_logp_T)
    log_ratio_T = inputs.logp_T - inputs.old_logp_T
    positive_T, negative_T = inputs.advantage_T > 0, inputs.advantage_T < 0
    ones_T = torch.ones_like(ratio_T)
    kl_T = torch.zeros_like(ratio_T) if loss.kl_T is None else loss.kl_T
    columns = {
        "tokens": ones_T,
        "entropy": inputs.entropy_T,
        "logp": inputs.logp_T,
        "policy_loss_weighted": inputs.weight_T * loss.policy_T,
        "kl_loss_weighted": kl.coefficient * inputs.weight_T * kl_T,
        "kl": kl_T,
        "kl_tokens": torch.zeros_like(ones_T) if loss.kl_T is None else ones_T,
        "old_minus_current": -log_ratio_T,
        "ratio": ratio_T,
        "clipped_low": negative_T & (ratio_T < 1.0 - clip.low),
        "clipped_high": positive_T & (ratio_T > 1.0 + clip.high),
        "clipped_dual": negative_T & (ratio_T > clip.dual),
        "saturated": log_ratio_T.abs() > LOG_RATIO_LIMIT,
        "advantage_positive": positive_T,
        "advantage_negative": negative_T,
    }
    sum_N = torch.stack([columns[name].sum(dtype=torch.float64) for name in SUM_NAMES])
    floor_T = torch.full((1,), -torch.inf, dtype=ratio_T.dtype, device=ratio_T.device)
    max_M = torch.stack([torch.cat((value_T, floor_T)).amax() for value_T in (ratio_T, -ratio_T)])
    return TokenSums(sum_N, max_M.double())


def to_metrics(sums: TokenSums, *, num_mini_batches: int = 1) -> dict[str, tuple[float, float]]:
    """Metric name to (total, count); its value is total / count, and a count of 0 means there is no value.

    Reads the tensors back to the host: call it once per step, on merged sums. `num_mini_batches` is how many
    mini-batches were merged: the losses are already normalised within each, so they average over mini-batches.

    Every fraction is over ALL response tokens, whatever the sign of their advantage, as in TRL:
    clip_ratio/low_mean (A < 0, r < 1-low), clip_ratio/high_mean (A > 0, r > 1+high), clip_ratio/dual_mean (A < 0,
    r > dual), clip_ratio/region_mean = low + high (TRL), actor/pg_clipfrac = low + high + dual: every token that
    clipping takes out of the gradient (verl's pg_clipfrac leaves dual out, as pg_clipfrac_lower).
    actor/ratio_saturated_frac: |log ratio| beyond the overflow clamp. actor/ppo_kl is the mean of old_logp - logp,
    actor/kl_loss the mean KL estimate to the reference without its coefficient.
    """
    if num_mini_batches < 1:
        raise ValueError(f"num_mini_batches is {num_mini_batches}; at least one mini-batch must have been merged")
    total = dict(zip(SUM_NAMES, sums.sum_N.tolist(), strict=True))
    largest = dict(zip(MAX_NAMES, sums.max_M.tolist(), strict=True))
    tokens, updates = total["tokens"], float(num_mini_batches)
    clipped = total["clipped_low"] + total["clipped_high"]
    metrics = {
        "actor/entropy": (total["entropy"], tokens),
        "actor/logp": (total["logp"], tokens),
        "actor/pg_loss": (total["policy_loss_weighted"], updates),
        "actor/loss": (total["policy_loss_weighted"] + total["kl_loss_weighted"], updates),
        "actor/ppo_kl": (total["old_minus_current"], tokens),
        "actor/ratio_mean": (total["ratio"], tokens),
        "actor/ratio_saturated_frac": (total["saturated"], tokens),
        "actor/pg_clipfrac": (clipped + total["clipped_dual"], tokens),
        "clip_ratio/low_mean": (total["clipped_low"], tokens),
        "clip_ratio/high_mean": (total["clipped_high"], tokens),
        "clip_ratio/dual_mean": (total["clipped_dual"], tokens),
        "clip_ratio/region_mean": (clipped, tokens),
        "actor/advantage_positive_frac": (total["advantage_positive"], tokens),
        "actor/advantage_negative_frac": (total["advantage_negative"], tokens),
    }
    if total["kl_tokens"]:
        metrics["actor/kl_loss"] = (total["kl"], total["kl_tokens"])
    if tokens:
        metrics["actor/ratio_max"] = (largest["ratio"], 1.0)
        metrics["actor/ratio_min"] = (-largest["negative_ratio"], 1.0)
    return metrics
