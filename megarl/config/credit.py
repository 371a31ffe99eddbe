"""Token weights that share out credit by the sign of the advantage and what a token does to the entropy (plug point 4),
and what turns one of them on and off (plug point 6)."""

from typing import ClassVar, Literal

from pydantic import Field

from megarl.config.controller_variant import ControllerVariant
from megarl.config.facts import RuleName
from megarl.config.weight_variant import WeightVariant


class NegativeScale(WeightVariant):
    """Multiplies tokens with A < 0; 0 drops them: only responses that did better than their group are trained on
    (WAPO, arXiv 2606.16154)."""

    tells_tokens_apart: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    scale: float = Field(1.0, ge=0)
    """The factor, and what objective.controllers.negative_scale enlarges."""


class Stare(WeightVariant):
    """Weighs the most surprising tokens (largest -log p) of each sign of A: those with A > 0 raise the entropy, those
    with A < 0 lower it (STARE, arXiv 2606.19236)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    fraction: float = Field(0.1, gt=0, le=1)
    """Share of the mini-batch's response tokens of a sign that is chosen; at least one token."""
    positive: float = Field(1.1, gt=0)
    """Weight of the chosen tokens with A > 0 (W)."""
    negative: float = Field(1.0, gt=0)
    """Weight of the chosen tokens with A < 0 (M): 1 in the authors' variant O1, 0.9 in C2."""


class EntropyFlow(WeightVariant):
    """Weighs tokens whose update raises the entropy by 1 + lambda and those that lower it by 1 - lambda, so that the
    two cancel to first order over the mini-batch (OPEFO, arXiv 2605.11491). They do with gate "ppo" without bounds and
    without dual clip, and no other weights: what those make of a token is not counted. Where every token lowers the
    entropy lambda is 1, and nothing is left of the update; likewise where every token raises it."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()


class StareGate(ControllerVariant):
    """weights.stare acts in the steps whose entropy is below a target, and is left out in the others."""

    acts_on: ClassVar[str] = "weights.stare"
    effect: ClassVar[str] = "turns objective.weights.stare on and off"
    follows_entropy: ClassVar[bool] = True
    target: float = Field(0.3, gt=0)
    """Nats per token."""


class NegativeScaleController(ControllerVariant):
    """Divides weights.negative_scale by clip(1 + H - H*, smallest, 1), H a running mean of the entropy and H* a share
    of the starting entropy: failures weigh more once the entropy is low (delta of FADE, arXiv 2607.01490)."""

    acts_on: ClassVar[str] = "weights.negative_scale"
    effect: ClassVar[str] = "moves objective.weights.negative_scale.scale"
    follows_entropy: ClassVar[bool] = True
    target_ratio: float = Field(0.5, gt=0)
    """H* relative to the starting entropy."""
    smallest: float = Field(0.3, gt=0, le=1)
    """Smallest divisor."""
    rate: float = Field(0.02, gt=0, le=1)
    """Weight of a step's entropy in the running mean, which begins at the first step's."""
