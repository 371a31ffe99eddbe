"""A rank's share of a mini-batch as the choosing rules see it, checked on every rank before the first rule acts.

A rule returns its weight, [T], and its int32 `Rule` flags, [T]. All statistics go through `reduce`, and whether a
collective happens depends only on what every rank knows (the config and reduced numbers): a rank without tokens
makes the same calls. T = response tokens of this rank's share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.contexts import share_values
from megarl.objective.shaping import shaped_advantage
from megarl.objective.token_random import token_keys
from megarl.objective.tokens import Controls, Reduce, TokenBatch
from megarl.rules import Rule

RuleResult = tuple[Tensor, Tensor]
"""Weight, [T], and int32 flags, [T]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Detached tokens of this rank, and what is known of the whole mini-batch."""

    tokens: TokenBatch
    advantage_T: Tensor
    """float64, after token shaping."""
    num_tokens: int
    """Response tokens of the whole mini-batch; at least 1."""
    controls: Controls
    reduce: Reduce

    def lots(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last keys of an exact choice, the same under any layout: a random order of the tokens that is drawn
        anew in every step, and what tells two apart that drew the same."""
        tokens, controls = self.tokens, self.controls
        draw_T = token_keys(
            seed=controls.seed, step=controls.step, sample_id_T=tokens.sample_id_T, position_T=tokens.position_T
        )
        return draw_T, tokens.sample_id_T, tokens.position_T

    def dropped(self, drop_T: Tensor, rule: Rule) -> RuleResult:
        """Weight 0 and the flag where `drop_T`, 1 and none elsewhere."""
        return torch.where(drop_T, 0.0, 1.0).to(self.tokens.logp_T.dtype), flags(drop_T, rule)


def take_share(objective: ObjectiveConfig, tokens: TokenBatch, controls: Controls, reduce: Reduce) -> Share | None:
    """Checks the tokens and makes those of one context equal (`contexts`). None where no rank has a token.

    Three collectives at most, of which the last has a few numbers per context that occurs more than once.

    Raises:
        ValueError: a number that a configured rule reads is missing (on this rank), or not finite (on every rank; the
            message names the samples of the rank that reads it).
    """
    tokens = tokens.detach()
    advantage_T = shaped_advantage(objective.shaping, tokens).detach().to(torch.float64)
    bad = {name: ~column_T.isfinite() for name, column_T in _finite_columns(objective, tokens, advantage_T).items()}
    if objective.reads_behavior:
        # An infinite one is legal: a log-prob of -inf means that the engine could not have sampled the token.
        bad["behavior_logp"] = _behavior_logp(objective, tokens).isnan()
    local = torch.tensor([tokens.logp_T.numel()], dtype=torch.int64, device=tokens.logp_T.device)
    totals = reduce.sum(torch.cat((local, *(bad_T.sum().reshape(1) for bad_T in bad.values())))).tolist()
    _refuse_bad(bad, dict(zip(bad, totals[1:], strict=True)), tokens)
    if totals[0] == 0:
        return None
    tokens = share_values(tokens, reduce)
    advantage_T = shaped_advantage(objective.shaping, tokens).detach().to(torch.float64)
    return Share(tokens=tokens, advantage_T=advantage_T, num_tokens=totals[0], controls=controls, reduce=reduce)


def share_of(fraction: float, num_tokens: int) -> Fraction:
    """fraction * num_tokens, exactly, of the fraction as it is written: 0.29 of 100 is 29, not 28.999..."""
    return Fraction(repr(fraction)) * num_tokens


def at_least_one(fraction: float, num_tokens: int) -> int:
    """max(1, floor(fraction * num_tokens)), as Clip-Cov, KL-Cov and Clip_V count."""
    return max(1, math.floor(share_of(fraction, num_tokens)))


def flags(where_T: Tensor, rule: Rule) -> Tensor:
    """int32: the rule's flag where True, else 0."""
    return where_T.to(torch.int32) * int(rule)


def _finite_columns(objective: ObjectiveConfig, tokens: TokenBatch, advantage_T: Tensor) -> dict[str, Tensor]:
    columns = {}
    if objective.needs_survey:
        columns = {
            "logp": tokens.logp_T,
            "entropy": tokens.entropy_T,
            "expected_q": tokens.expected_q_T,
            "advantage": advantage_T,
        }
    return {**columns, "old_logp": tokens.old_logp_T}


def _behavior_logp(objective: ObjectiveConfig, tokens: TokenBatch) -> Tensor:
    if tokens.behavior_logp_T is None:
        on = objective.weights.on.items()
        reading = [f"objective.weights.{name}" for name, weight in on if weight.mismatch != "ignores"]
        reading += ['objective.ratio.anchor "behavior"'] if objective.ratio.reads_behavior else []
        raise ValueError(
            f"{' and '.join(reading)} compare with vLLM's log-probs, but the tokens have no behavior_logp_T; pass it, "
            "or leave them out"
        )
    return tokens.behavior_logp_T


def _refuse_bad(bad: Mapping[str, Tensor], totals: Mapping[str, int], tokens: TokenBatch) -> None:
    problems = []
    for name, total in totals.items():
        if total:
            samples = tokens.sample_id_T[bad[name]].unique().tolist()
            here = f"in samples {samples[:20]} of this rank" if samples else "on other ranks"
            problems.append(f"{name} of {total} response tokens, {here}")
    if problems:
        raise ValueError(
            f"the mini-batch has numbers that are not finite: {'; '.join(problems)}. No token can be chosen by them; "
            "look for a diverged policy (learning rate, gradient norm) in the steps before"
        )
