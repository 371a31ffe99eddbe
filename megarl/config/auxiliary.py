"""Plug points 5 and 6: losses beside the policy loss, and what changes coefficients while the run goes on."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, ConfigError
from megarl.config.controller_variant import ControllerVariant
from megarl.config.credit import NegativeScaleController, StareGate
from megarl.config.facts import NotBelow, RuleName, Variant

Reading = Literal["reference", "entropy", "expert", "verdict"]
"""What a loss may need beside the current log-probs: log-probs of a frozen reference; the current entropy with its
gradient; log-probs of the data set's own answer; whether the response is correct."""


class AuxiliaryVariant(Variant):
    """A loss beside the policy loss, and what it says of itself."""

    @property
    @abstractmethod
    def reads(self) -> tuple[Reading, ...]:
        """What it needs beside the current log-probs."""

    @property
    @abstractmethod
    def needs_survey(self) -> bool:
        """Whether it reads statistics of the whole mini-batch under the current weights."""

    @property
    @abstractmethod
    def compares_updates(self) -> bool:
        """Whether it compares with the policy before the batch's first update, so that one update leaves it idle."""

    @property
    @abstractmethod
    def rules(self) -> tuple[RuleName, ...]:
        """The rules that may act on tokens because of it."""


class KlLoss(AuxiliaryVariant):
    """KL to a frozen reference: the starting weights, until controllers.reference_reset renews it."""

    reads: ClassVar[tuple[Reading, ...]] = ("reference",)
    needs_survey: ClassVar[bool] = False
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    coefficient: float = Field(1e-3, gt=0)
    """Weight of the estimate in the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """k1 = lp - ref (with k2's gradient; its own does not pull to the reference), k2 = (lp - ref)^2 / 2,
    k3 = exp(ref - lp) - (ref - lp) - 1, on sampled tokens."""


class KlCov(AuxiliaryVariant):
    """coefficient |logp - old_logp| on the tokens with the highest covariance of log-prob and advantage
    (KL-Cov, arXiv 2505.22617). Without effect in the first update of a step, where the two are equal."""

    reads: ClassVar[tuple[Reading, ...]] = ()
    needs_survey: ClassVar[bool] = True
    compares_updates: ClassVar[bool] = True
    rules: ClassVar[tuple[RuleName, ...]] = ("kl_cov",)
    coefficient: float = Field(1.0, gt=0)
    """beta."""
    fraction: float = Field(2e-4, gt=0, le=1)
    """Share of the mini-batch's response tokens, at least one token (2e-3 for 7B in the paper, 2e-4 for 32B)."""


class EntropyBonus(AuxiliaryVariant):
    """-coefficient H in the loss, with the gradient of the exact entropy."""

    reads: ClassVar[tuple[Reading, ...]] = ("entropy",)
    needs_survey: ClassVar[bool] = False
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    coefficient: float = Field(1e-3, ge=0)
    """Weight, and where a controller starts."""


class GuidedLoss(AuxiliaryVariant):
    """CalibRL: coefficient |A| LeakyReLU(-(2 [correct] - 1) (logp - expert_logp)); expert_logp is the old policy's
    log-prob of the data set's answer at the same position (ICLR 2026). Nothing past the end of the answer."""

    reads: ClassVar[tuple[Reading, ...]] = ("expert", "verdict")
    needs_survey: ClassVar[bool] = False
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    coefficient: float = Field(0.1, gt=0)
    """Weight in the loss."""
    negative_slope: float = Field(0.5, ge=0, lt=1)
    """Of the LeakyReLU."""


class AuxiliaryConfig(Config):
    """Losses beside the policy loss; each is absent or on. They use the aggregation's weights."""

    kl: KlLoss | None = None
    """KL to the reference."""
    kl_cov: KlCov | None = None
    """KL-Cov."""
    entropy: EntropyBonus | None = None
    """Entropy bonus."""
    guided: GuidedLoss | None = None
    """CalibRL's guided loss."""

    @property
    def on(self) -> dict[str, AuxiliaryVariant]:
        """The losses that are on, by field."""
        return {name: value for name, value in self if isinstance(value, AuxiliaryVariant)}

    def reads(self, what: Reading) -> bool:
        """Whether a loss that is on needs it."""
        return any(what in loss.reads for loss in self.on.values())


class AdaptiveEntropyCoefficient(ControllerVariant):
    """Skywork-OR1 and TRL: each step the coefficient of auxiliary.entropy rises by `step` while the entropy is below
    `target` and falls by it above; the bonus acts only while the entropy is at most the target."""

    acts_on: ClassVar[str] = "auxiliary.entropy"
    effect: ClassVar[str] = "moves objective.auxiliary.entropy.coefficient"
    follows_entropy: ClassVar[bool] = True
    target: float = Field(0.2, gt=0)
    """Nats per token."""
    step: float = Field(1e-4, gt=0)
    """Change per training step (Skywork 1e-4, TRL 5e-3)."""
    minimum: float = Field(0.0, ge=0)
    """Smallest coefficient."""
    maximum: Annotated[float, NotBelow("minimum")] = Field(5e-3, gt=0)
    """Largest coefficient (Skywork 5e-3, TRL 1)."""


class AerStyleCoefficient(ControllerVariant):
    """AER-style: coefficient <- max(0, coefficient + rate (target_ratio H_start - H)), and per prompt a factor
    max(0, (rho - accuracy) / rho). A reconstruction of arXiv 2510.10959, whose formulas were not available."""

    acts_on: ClassVar[str] = "auxiliary.entropy"
    effect: ClassVar[str] = "moves objective.auxiliary.entropy.coefficient"
    follows_entropy: ClassVar[bool] = True
    target_ratio: float = Field(0.4, gt=0)
    """Target entropy relative to the starting entropy."""
    rate: float = Field(5e-3, gt=0)
    """Change per step and nat."""
    rho: float = Field(1.0, gt=0, le=1)
    """Prompts whose group accuracy is at least this get no bonus."""


class PositiveScaleController(ControllerVariant):
    """Moves weights.positive_scale to hold the entropy: down by `step` below the target (positive tokens sharpen),
    up by it above (arXiv 2511.05993)."""

    acts_on: ClassVar[str] = "weights.positive_scale"
    effect: ClassVar[str] = "moves objective.weights.positive_scale.scale"
    follows_entropy: ClassVar[bool] = True
    target: float = Field(0.3, gt=0)
    """Nats per token."""
    step: float = Field(0.05, gt=0, lt=1)
    """How far the scale is moved from its configured value."""


class ReferenceReset(ControllerVariant):
    """ProRL (arXiv 2505.24864): the reference becomes the current weights and the optimizer's moments start anew."""

    acts_on: ClassVar[str] = "auxiliary.kl"
    effect: ClassVar[str] = "renews the reference of objective.auxiliary.kl"
    follows_entropy: ClassVar[bool] = False
    every_steps: int | None = Field(None, ge=1)
    """After every so many steps."""
    kl_above: float | None = Field(None, gt=0)
    """After a step whose mean KL estimate to the reference is above this."""

    @model_validator(mode="after")
    def _has_a_trigger(self) -> Self:
        if self.every_steps is None and self.kl_above is None:
            raise ConfigError("objective.controllers.reference_reset: set every_steps or kl_above, or remove the table")
        return self


class ControllersConfig(Config):
    """State machines that move a number from step to step; their state is saved with the run. Each is absent or on.
    The schedule of objective.clip kind "flexec" is one more."""

    entropy_coefficient: AdaptiveEntropyCoefficient | None = None
    """Holds the entropy above a target with auxiliary.entropy."""
    aer: AerStyleCoefficient | None = None
    """The same, with a target from the start of the run and a factor per prompt."""
    positive_scale: PositiveScaleController | None = None
    """Holds the entropy with weights.positive_scale."""
    negative_scale: NegativeScaleController | None = None
    """Enlarges weights.negative_scale as the entropy falls."""
    stare: StareGate | None = None
    """Holds the entropy above a target with weights.stare."""
    reference_reset: ReferenceReset | None = None
    """Renews the KL's reference."""

    @property
    def on(self) -> dict[str, ControllerVariant]:
        """The controllers that are on, by field."""
        return {name: value for name, value in self if isinstance(value, ControllerVariant)}
