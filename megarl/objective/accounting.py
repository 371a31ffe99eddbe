"""What a mini-batch did to its tokens and to the entropy, as sums that merge exactly (`token_sums`).

All sums are float64. Only the entropy quintiles need the other ranks: they are the one statistic for which the host
waits before `to_metrics`. T = response tokens.

H is the entropy of the current policy at a token's position, Q = p (log p + H) of the sampled token, N(s) = sum over
the vocabulary of p^2 (log p + H) the mean of Q, r = exp(logp - old_logp) the token's own ratio at every ratio level.

Which tokens count as what:
* clipped: those with a CLIP_LOW, CLIP_HIGH, DUAL or DPPO flag, even where the gate leaves them some gradient
  (CE-GPPO), and even where a mask has set their weight to 0; "effective" leaves those masked ones out. Low side:
  CLIP_LOW, or DPPO with A < 0; high side: CLIP_HIGH, or DPPO with A > 0; DUAL is a third side.
* X = {ratio < lo} and Y = {ratio > hi}, whatever the sign of A: the sets of arXiv 2509.26114; D = {ratio > dual} is
  the third set, of a dual clip, which the paper has not: it takes tokens with A < 0 out, as X does, so it counts like
  X, and where Y and D meet the two cancel. The ratio is the one that the clip compares, r itself at level "token" with
  anchor "old", where the theorem's statement holds.
* A is the advantage after token shaping.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from megarl.objective.bounds import clipped_sides
from megarl.objective.contexts import at_resolution, share_values
from megarl.objective.order_statistics import count, kth_smallest
from megarl.objective.ratio import LOG_RATIO_LIMIT
from megarl.objective.token_sums import CLIPPED, COUNTED_RULES, QUINTILES, SUM_NAMES, TokenSums
from megarl.objective.tokens import Reduce, TokenBatch, TokenLoss
from megarl.rules import Rule


@torch.no_grad()
def collect_token_sums(tokens: TokenBatch, loss: TokenLoss, reduce: Reduce) -> TokenSums:
    """Statistics of this rank's whole share of one mini-batch; T may be 0, and every rank must call.

    `loss` is what `compute_token_loss` gave for `tokens`, concatenated in the same order. The sums of all shares add
    up to those of the mini-batch in one piece.

    Raises:
        ValueError: an entropy is NaN.
    """
    columns = {name: value for part in _columns(tokens.detach(), loss) for name, value in part.items()}
    sums = {name: value.sum(dtype=torch.float64) for name, value in columns.items()}
    sums |= _quintile_sums(tokens, columns, reduce)
    ratio_T = loss.ratio_T.double()
    floor_T = ratio_T.new_full((1,), -torch.inf)
    return TokenSums(
        torch.stack([sums[name] for name in SUM_NAMES]),
        torch.stack([torch.cat((value_T, floor_T)).amax() for value_T in (ratio_T, -ratio_T)]),
    )


def _columns(tokens: TokenBatch, loss: TokenLoss) -> Iterator[dict[str, Tensor]]:
    """What is summed, by name: entries per token, except the losses' scalars and the response means."""
    entropy_T, logp_T = tokens.entropy_T.double(), tokens.logp_T.double()
    positive_T, negative_T = loss.advantage_T > 0, loss.advantage_T < 0
    dppo_T = (loss.rule_T & Rule.DPPO) != 0
    low_T = ((loss.rule_T & Rule.CLIP_LOW) != 0) | (dppo_T & negative_T)
    high_T = ((loss.rule_T & Rule.CLIP_HIGH) != 0) | (dppo_T & positive_T)
    dual_T = (loss.rule_T & Rule.DUAL) != 0
    clipped_T = (loss.rule_T & CLIPPED) != 0
    gap_T = tokens.expected_q_T.double() - tokens.q_T  # N(s) - Q
    yield _loss_columns(tokens, loss)
    yield {
        "tokens": torch.ones_like(entropy_T),
        "entropy": entropy_T,
        **_response_means(tokens),
        "logp": logp_T,
        "ratio": loss.ratio_T,
        "old_minus_current": tokens.old_logp_T.double() - logp_T,
        "weight": loss.weight_T,
        "masked": loss.weight_T == 0,
        "positive": positive_T,
        "negative": negative_T,
        "clipped": clipped_T,
        "clipped_low": low_T,
        "clipped_high": high_T,
        "clipped_dual": dual_T,
        "clipped_region": low_T | high_T,
        "effective_low": low_T & (loss.weight_T != 0),
        "effective_high": high_T & (loss.weight_T != 0),
        "saturated": (loss.rule_T & Rule.SATURATED) != 0,
    }
    yield _bound_columns(loss)
    yield _matched_columns(loss)
    yield {f"rule_{name}": (loss.rule_T & rule) != 0 for rule, name in COUNTED_RULES.items()}
    yield _theorem_columns(tokens, loss, gap_T)
    surprise_T = at_resolution(-logp_T - entropy_T)
    common_T, rare_T = surprise_T < 0, surprise_T > 0
    yield {
        "region_e1": positive_T & common_T,
        "region_e2": positive_T & rare_T,
        "region_e3": negative_T & common_T,
        "region_e4": negative_T & rare_T,
    }
    budget_T = loss.coefficient_T.double() * gap_T
    whole_T = (tokens.weight_T * loss.weight_T).double() * loss.ratio_T * loss.advantage_T * gap_T
    yield {
        "budget": budget_T,
        "budget_positive_kept": budget_T * (positive_T & ~clipped_T),
        "budget_positive_clipped": budget_T * (positive_T & clipped_T),
        "budget_negative_kept": budget_T * (negative_T & ~clipped_T),
        "budget_negative_clipped": budget_T * (negative_T & clipped_T),
        "removed_low": (whole_T - budget_T) * low_T,
        "removed_high": (whole_T - budget_T) * high_T,
        "removed_dual": (whole_T - budget_T) * dual_T,
    }


def _bound_columns(loss: TokenLoss) -> dict[str, Tensor]:
    """Distances of the bounds from 1, and a 1 for each bound that is on."""
    low_on_T, high_on_T = loss.low_T > 0, torch.isfinite(loss.high_T)
    return {
        "low_distance": torch.where(low_on_T, 1.0 - loss.low_T.double(), 0.0),
        "low_bounded": low_on_T,
        "high_distance": torch.where(high_on_T, loss.high_T.double() - 1.0, 0.0),
        "high_bounded": high_on_T,
    }


def _matched_columns(loss: TokenLoss) -> dict[str, Tensor]:
    """What a coin dropped on each side, and what is beyond the bounds of the side, whether they act or not."""
    beyond_T = clipped_sides(loss.ratio_T, loss.advantage_T, loss.low_T, loss.high_T)
    matched_T = (loss.rule_T & Rule.MATCHED) != 0
    return {
        "beyond_low": beyond_T == int(Rule.CLIP_LOW),
        "beyond_high": beyond_T == int(Rule.CLIP_HIGH),
        "matched_low": matched_T & (loss.advantage_T < 0),
        "matched_high": matched_T & (loss.advantage_T > 0),
    }


def _loss_columns(tokens: TokenBatch, loss: TokenLoss) -> dict[str, Tensor]:
    weight_T = (tokens.weight_T * loss.weight_T).double()
    kl_T = tokens.logp_T.new_zeros(0) if loss.kl_T is None else loss.kl_T
    return {
        "policy_loss": weight_T * loss.policy_T,
        "auxiliary_loss": loss.auxiliary,
        "loss": loss.loss.detach(),
        "kl": kl_T,
        "kl_tokens": torch.ones_like(kl_T),
    }


def _response_means(tokens: TokenBatch) -> dict[str, Tensor]:
    """Mean entropy of each response that has tokens, and a 1 for each, [B]."""
    length_B, total_B = tokens.lengths(), tokens.sequence_sum(tokens.entropy_T.double())
    return {"response_entropy": total_B / length_B.clamp(min=1), "responses": length_B > 0}


def _theorem_columns(tokens: TokenBatch, loss: TokenLoss, gap_T: Tensor) -> dict[str, Tensor]:
    """The integrands of Theorems 1 and 2, and the same for the dual clip's set. The weight r turns samples of the old
    policy into an expectation under the current one, which is what both theorems are about; without it the estimates
    are biased."""
    logp_T = tokens.logp_T.double()
    ratio_T = (logp_T - tokens.old_logp_T.double()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    columns = {}
    sides = {
        "low": loss.ratio_T < loss.low_T,
        "high": loss.ratio_T > loss.high_T,
        "dual": loss.ratio_T > loss.dual_T,
    }
    for side, outside_T in sides.items():
        mass_T = ratio_T * outside_T
        columns[f"{side}_mass"] = mass_T
        columns[f"{side}_gap"] = mass_T * gap_T
        columns[f"{side}_gap_weighted"] = tokens.weight_T.double() * mass_T * gap_T
        columns[f"{side}_surprisal"] = mass_T * (-logp_T - tokens.entropy_T.double())
    return columns


def _quintile_sums(tokens: TokenBatch, columns: dict[str, Tensor], reduce: Reduce) -> dict[str, Tensor]:
    """Tokens and clipped tokens of each entropy quintile of the whole mini-batch.

    With n tokens on all ranks, the edges are the entropies of (0-based) rank floor(n/5), floor(2n/5), ...; quintile q
    holds what is at least its lower edge and below its upper one. Equal entropies share a quintile, so quintiles are
    a fifth each only where the edges are not tied. Equal are the entropies of equal contexts, and the same multiples of
    `contexts.RESOLUTION`.
    """
    entropy_T = at_resolution(share_values(tokens, reduce, of_context=["entropy_T"], of_outcome=[]).entropy_T.detach())
    num_tokens = count(torch.ones_like(entropy_T, dtype=torch.bool), reduce)
    quintile_T = torch.zeros_like(entropy_T, dtype=torch.int64)
    if num_tokens:
        edges = kth_smallest(entropy_T, [q * num_tokens // 5 for q in QUINTILES[:-1]], reduce)
        quintile_T = torch.bucketize(entropy_T, edges.to(entropy_T), right=True)
    zeros = entropy_T.new_zeros(len(QUINTILES), dtype=torch.float64)
    return {
        f"{name}_q{q}": total
        for name in ("tokens", "clipped_low", "clipped_high")
        for q, total in zip(QUINTILES, zeros.index_add(0, quintile_T, columns[name].double()), strict=True)
    }
