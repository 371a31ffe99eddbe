"""Which tokens the statistics of the whole mini-batch choose, and how much they weigh.

One call per update, on the rank's whole share of the mini-batch, under the weights that the update starts from. The
same mini-batch gives the same choices under every parallel layout, micro-batch size and order of the samples: sums and
order statistics are exact (`exact_sums`, `order_statistics`), ties are broken by the token's identity, and random
choices are a hash of it (`token_random`). Each rule adds a few collectives of fixed size. Rules multiply; each is
computed from all response tokens, whatever the others drop, so their order does not matter. No rule changes the
aggregation's divisor. T = response tokens of this rank's share.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.config.credit import EntropyFlow, Stare
from megarl.config.facts import NoFormulaError
from megarl.config.objective import ObjectiveConfig
from megarl.config.weight import (
    ClipB,
    ClipCov,
    ClipV,
    HighEntropyMask,
    MaskedImportance,
    MatchedControl,
    SequenceRejection,
    Steer,
    TruncatedImportance,
)
from megarl.objective import credit, entropy_rules, mismatch
from megarl.objective.bapo import search_bounds
from megarl.objective.closed_loop import search_knob
from megarl.objective.covariance import clip_cov, kl_cov_mask, token_covariance
from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.objective.matched import matched_control
from megarl.objective.share import RuleResult, Share, flags, take_share
from megarl.objective.stale import staleness_quantile
from megarl.objective.tokens import Choices, Controls, Reduce, TokenBatch
from megarl.rules import Rule


def choose(objective: ObjectiveConfig, tokens: TokenBatch, controls: Controls, reduce: Reduce) -> Choices:
    """The choices for this rank's share `tokens`; every rank of `reduce` must call. T may be 0.

    Advantages are shaped ones (`shaped_advantage`). Rules that need no statistics of the mini-batch are in `weights`.
    Without a rule that chooses there is no collective.

    Raises:
        ValueError: `behavior_logp_T` is missing where a mismatch rule is on, or a number that a rule reads is not
            finite (then on every rank).
        NoFormulaError: a weight that needs choosing is on and is not known here.
    """
    if not needs_choices(objective):
        return Choices.none(tokens.logp_T)
    share = take_share(objective, tokens, controls, reduce)
    if share is None:
        return _without_tokens(objective, tokens, controls)
    clip = objective.clip
    bapo_bounds = search_bounds(objective, clip, share) if clip.kind == "bapo" else None
    stale_above = staleness_quantile(objective, clip, share) if clip.kind == "stale" else None
    weight_T = torch.ones_like(share.tokens.logp_T)
    rule_T = torch.zeros_like(weight_T, dtype=torch.int32)
    for rule_weight_T, rule_flags_T in _choosing_weights(objective, share):
        weight_T, rule_T = weight_T * rule_weight_T, rule_T | rule_flags_T
    chosen = Choices(weight_T=weight_T, rule_T=rule_T, bapo_bounds=bapo_bounds, stale_above=stale_above)
    bounds = _with_loop(objective, share, chosen)
    return _with_matched_control(objective, share, _with_covariance_rules(objective, share, bounds), bounds)


def needs_choices(objective: ObjectiveConfig) -> bool:
    """Whether `choose` has a rule to apply; otherwise it returns at once. The config alone decides."""
    return objective.needs_survey or objective.weights.reads_behavior


def _choosing_weights(objective: ObjectiveConfig, share: Share) -> Iterator[RuleResult]:
    """Those that read no bounds: Clip-Cov and the matched control come after BAPO's search."""
    for weight in objective.weights.on.values():
        match weight:
            case TruncatedImportance():
                yield mismatch.truncated_importance(weight, share)
            case MaskedImportance():
                yield mismatch.masked_importance(weight, share)
            case SequenceRejection():
                yield mismatch.sequence_rejection(weight, share)
            case HighEntropyMask():
                yield entropy_rules.high_entropy(weight, share)
            case Steer():
                yield entropy_rules.steer(weight, share)
            case ClipB():
                yield entropy_rules.clip_b(weight, share)
            case ClipV():
                yield entropy_rules.clip_v(weight, share)
            case Stare():
                yield credit.stare(weight, share)
            case EntropyFlow():
                yield credit.entropy_flow(share, objective.ratio)
            case ClipCov() | MatchedControl():
                continue
            case _ if weight.needs_survey or weight.mismatch != "ignores":
                raise NoFormulaError(weight, "the choice of tokens")


def _with_loop(objective: ObjectiveConfig, share: Share, so_far: Choices) -> Choices:
    """`so_far` and the bounds of a closed loop, which reads its weights."""
    match objective.clip:
        case ClosedLoopClip() | ClosedLoopFlexEcClip() as clip:
            return replace(so_far, loop=search_knob(objective, clip, share, so_far))
    return so_far


def _with_covariance_rules(objective: ObjectiveConfig, share: Share, so_far: Choices) -> Choices:
    """`so_far` and Clip-Cov, which reads its bounds, and KL-Cov; the two share the covariance."""
    clip, penalty = objective.weights.clip_cov, objective.auxiliary.kl_cov
    if clip is None and penalty is None:
        return so_far
    covariance_T = token_covariance(share)
    weight_T, rule_T = so_far.weight_T, so_far.rule_T
    kl_cov_T: Tensor | None = None
    if clip is not None:
        kept_T, dropped_T = clip_cov(clip, share, objective=objective, covariance_T=covariance_T, bounds=so_far)
        weight_T, rule_T = weight_T * kept_T, rule_T | dropped_T
    if penalty is not None:
        kl_cov_T = kl_cov_mask(penalty, share, covariance_T=covariance_T)
        rule_T = rule_T | flags(kl_cov_T, Rule.KL_COV)
    return replace(so_far, weight_T=weight_T, rule_T=rule_T, kl_cov_T=kl_cov_T)


def _with_matched_control(objective: ObjectiveConfig, share: Share, so_far: Choices, bounds: Choices) -> Choices:
    """`so_far` and the matched control, which reads the bounds of `bounds`."""
    if objective.bounds_act:
        return so_far
    kept_T, dropped_T = matched_control(objective, share, bounds)
    return replace(so_far, weight_T=so_far.weight_T * kept_T, rule_T=so_far.rule_T | dropped_T)


def _without_tokens(objective: ObjectiveConfig, tokens: TokenBatch, controls: Controls) -> Choices:
    """No rank has a token: nothing to choose, but the loss finds every field it reads."""
    nothing = Choices.none(tokens.logp_T)
    clip = objective.clip
    return Choices(
        weight_T=nothing.weight_T,
        rule_T=nothing.rule_T,
        kl_cov_T=None if objective.auxiliary.kl_cov is None else nothing.rule_T.to(torch.bool),
        bapo_bounds=(clip.low_start, clip.high_start) if clip.kind == "bapo" else None,
        loop=_unmoved(controls.loop) if clip.steers and controls.loop else None,
        stale_above=0.0 if clip.kind == "stale" else None,
    )


def _unmoved(loop: LoopControls) -> LoopChoice:
    """The knob stays where it is."""
    return LoopChoice(knob=loop.knob, wanted=0.0, predicted=0.0, size=0.0, entropy=loop.entropy)
