"""The other half of plug point 3, trust: the gate, what the bounds do to the gradient."""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megarl.config.base import Unbounded
from megarl.config.facts import LargestWeight, NotBelow, RuleName, Variant


class GateVariant(Variant):
    """A choice of what bounds do, and what it says of itself."""

    reads_upper: ClassVar[bool] = True
    """Whether the upper one is among the bounds that it reads, if it reads any."""

    @property
    @abstractmethod
    def reads_bounds(self) -> Literal["never", "may", "must"]:
        """Whether it reads the clip's bounds: never, so that there may be none; if there are any; or it needs them."""

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Its fields that are on and act at bounds alone."""
        return ()

    @property
    @abstractmethod
    def drops_beyond(self) -> bool:
        """Whether a token beyond its bound has no gradient."""

    @property
    @abstractmethod
    def of_tokens(self) -> bool:
        """Whether it is defined on single tokens' ratios, so that it needs a ratio per token."""

    @property
    @abstractmethod
    def bounds_first(self) -> bool:
        """Whether it can bound token ratios before they are averaged (level "geometric")."""

    @property
    @abstractmethod
    def is_weight(self) -> bool:
        """Whether r is a weight without gradient, so that g is in the token's own log-prob at any level."""

    @property
    @abstractmethod
    def dual_bound(self) -> float:
        """The ratio above which tokens with A < 0 have no gradient; inf: a gate without, or turned off."""

    @property
    @abstractmethod
    def rules(self) -> tuple[RuleName, ...]:
        """The rules that may act on tokens because of it, beside the clip's."""


class PpoGate(GateVariant):
    """-min(r A, clip(r, lo, hi) A); g = r A inside the bound of A's side, 0 outside."""

    kind: Literal["ppo"] = "ppo"
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "may"
    drops_beyond: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = False
    is_weight: ClassVar[bool] = False
    dual: Unbounded = Field(math.inf, gt=1)
    """Dual clip: where A < 0 the loss is at most -dual * A (arXiv 1912.09729). inf turns it off."""
    dual_at_high: bool = False
    """A dual clip at the upper bound, too: where A < 0 the loss is at most -hi A."""
    rescue: float = Field(0.0, ge=0, lt=1)
    """A ratio beyond its side's bound is not clipped where, times a number drawn evenly from 1 - rescue to 1 + rescue,
    it lies inside (NSR, arXiv 2605.22703): at the bound one of two, none from hi / (1 - rescue) on. 0 turns it off."""

    @property
    def at_bounds(self) -> tuple[str, ...]:
        return tuple(name for name in ("dual_at_high", "rescue") if getattr(self, name))

    @property
    def bounds_first(self) -> bool:
        return self.dual == math.inf and not self.dual_at_high and self.rescue == 0

    @property
    def dual_bound(self) -> float:
        return self.dual

    @property
    def rules(self) -> tuple[RuleName, ...]:
        return ("dual",) if self.dual_at_high else _dual_rules(self.dual)


class CeGppoGate(GateVariant):
    """PPO whose clipped tokens keep a bounded gradient (CE-GPPO, arXiv 2509.20712)."""

    kind: Literal["ce_gppo"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "must"
    drops_beyond: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = False
    low_scale: float = Field(0.75, ge=0)
    """beta_1: g = beta_1 lo A where A < 0 and r < lo."""
    high_scale: float = Field(1.0, ge=0)
    """beta_2: g = beta_2 hi A where A > 0 and r > hi."""
    dual: Unbounded = Field(10.0, gt=1)
    """Where A < 0 and r is above this ratio the gradient is 0. inf turns it off."""

    @property
    def dual_bound(self) -> float:
        return self.dual

    @property
    def rules(self) -> tuple[RuleName, ...]:
        return _dual_rules(self.dual)


class CispoGate(GateVariant):
    """g = min(r, cap) A: no token is dropped (MiniMax-M1, arXiv 2506.13585). Reads no bounds."""

    kind: Literal["cispo"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "never"
    drops_beyond: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = True
    dual_bound: ClassVar[float] = math.inf
    rules: ClassVar[tuple[RuleName, ...]] = ("cap",)
    cap: Annotated[Unbounded, LargestWeight(), NotBelow("floor")] = Field(5.0, gt=0)
    """Largest weight: a ratio, not a distance from 1 (ScaleRL 5.0; verl's epsilon 0.2 is cap 1.2); inf is none."""
    floor: float = Field(0.0, ge=0)
    """Smallest weight; 0 is off, as its authors have it."""


class SapoGate(GateVariant):
    """A sigmoid instead of a bound: g = 4 s (1 - s) r A, s = sigmoid(tau (r - 1)) (SAPO, arXiv 2511.20347)."""

    kind: Literal["sapo"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "never"
    drops_beyond: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = False
    dual_bound: ClassVar[float] = math.inf
    rules: ClassVar[tuple[RuleName, ...]] = ()
    positive_temperature: float = Field(1.0, gt=0)
    """tau where A > 0."""
    negative_temperature: float = Field(1.05, gt=0)
    """tau where A <= 0."""


class DppoGate(GateVariant):
    """Drops tokens whose probability moved too far, and away from the anchor (DPPO, arXiv 2602.04879)."""

    kind: Literal["dppo"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "never"
    drops_beyond: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = True
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = True
    dual_bound: ClassVar[float] = math.inf
    rules: ClassVar[tuple[RuleName, ...]] = ("dppo", "cap")
    divergence: Literal["tv", "kl"] = "tv"
    """tv: |pi - pi_anchor|. kl: KL between the two Bernoulli distributions of drawing the token."""
    low: Unbounded = Field(0.15, gt=0)
    """Largest divergence where A < 0 and the probability fell; inf drops none."""
    high: Unbounded = Field(0.15, gt=0)
    """Largest divergence where A > 0 and the probability rose; inf drops none."""
    cap: Annotated[Unbounded, LargestWeight()] = Field(20.0, gt=1)
    """Largest weight: g = min(r, cap) A where kept; inf is none."""


class AspoGate(GateVariant):
    """Where A > 0 the weight is 1/r instead of r (ASPO, arXiv 2510.06062)."""

    kind: Literal["aspo"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "must"
    drops_beyond: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = False
    dual_bound: ClassVar[float] = math.inf
    rules: ClassVar[tuple[RuleName, ...]] = ("cap",)
    cap: Annotated[Unbounded, LargestWeight()] = Field(3.0, gt=1)
    """Largest weight: of 1/r where A > 0, of r where A < 0; beyond it g = cap A. inf is none."""


class UpGate(GateVariant):
    """Where A > 0 nothing is clipped and g = A, whatever the ratio (REINFORCE); elsewhere PPO with its dual clip
    (UP-GRPO, arXiv 2607.06987). Of the bounds it reads the lower one."""

    kind: Literal["up"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "may"
    drops_beyond: ClassVar[bool] = True
    reads_upper: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = True
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = False
    dual: Unbounded = Field(3.0, gt=1)
    """Dual clip: where A < 0 the loss is at most -dual * A. inf turns it off."""

    @property
    def dual_bound(self) -> float:
        return self.dual

    @property
    def rules(self) -> tuple[RuleName, ...]:
        return _dual_rules(self.dual)


def _dual_rules(dual: float) -> tuple[RuleName, ...]:
    return () if dual == math.inf else ("dual",)


Gate = Annotated[
    PpoGate | CeGppoGate | CispoGate | SapoGate | DppoGate | AspoGate | UpGate,
    Field(discriminator="kind"),
]
