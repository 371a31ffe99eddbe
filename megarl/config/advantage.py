"""Plug points 1 and 2: which groups are trained on, and how rewards become advantages."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megarl.config.base import Config
from megarl.config.facts import Variant


class SamplerVariant(Variant):
    """A choice of groups, and what it says of itself."""

    @property
    @abstractmethod
    def needs_spread(self) -> bool:
        """Whether it drops groups whose responses all score alike, and samples others for them."""


class AllGroups(SamplerVariant):
    """Train on every group that was sampled."""

    kind: Literal["all"] = "all"
    needs_spread: ClassVar[bool] = False


class DynamicSampling(SamplerVariant):
    """Drop groups whose responses are all correct or all wrong and sample others (DAPO, arXiv 2503.14476, eq. 11).

    Correct is what reward.correct_from says; of draws that know no right and wrong, groups of equal numbers go.
    """

    kind: Literal["dynamic"]
    needs_spread: ClassVar[bool] = True
    prompts_per_generation: int | None = Field(None, ge=1)
    """Prompts of one round of generation; default: train.prompts_per_step. DAPO generates three times as many."""
    max_generations: int = Field(10, ge=1)
    """Rounds of generation a step may take."""
    when_exhausted: Literal["stop", "fill"] = "stop"
    """After the last round: end the run with a message, or fill the batch with groups that would have been dropped."""


Sampler = Annotated[AllGroups | DynamicSampling, Field(discriminator="kind")]


class AdvantageVariant(Variant):
    """A way from rewards to advantages, and what it says of itself."""

    @property
    @abstractmethod
    def compares_group(self) -> bool:
        """Whether it compares the responses to one prompt, so that a group of one has advantage 0."""


class DrGrpo(AdvantageVariant):
    """A = R - mean of the group (arXiv 2503.20783; the clipping papers' choice)."""

    method: Literal["dr_grpo"] = "dr_grpo"
    compares_group: ClassVar[bool] = True


class Grpo(AdvantageVariant):
    """A = (R - mean) / (std + eps) over the group (arXiv 2402.03300); std with Bessel's correction, as verl and TRL."""

    method: Literal["grpo"]
    compares_group: ClassVar[bool] = True
    eps: float = Field(1e-6, ge=0)
    """Added to the standard deviation."""


class Rloo(AdvantageVariant):
    """A = R - mean of the group's other rewards (leave one out, arXiv 2402.14740)."""

    method: Literal["rloo"]
    compares_group: ClassVar[bool] = True


class ReinforcePlusPlus(AdvantageVariant):
    """A = (R - mean) / std over all response tokens of the step (arXiv 2501.03262); no group baseline."""

    method: Literal["reinforce_pp"]
    compares_group: ClassVar[bool] = False


class ReinforcePlusPlusBaseline(AdvantageVariant):
    """R - mean of the group, then centred and scaled over all response tokens of the step (ProRLv2, BroRL)."""

    method: Literal["reinforce_pp_baseline"]
    compares_group: ClassVar[bool] = True


class QuantileAdvantage(AdvantageVariant):
    """A = (R - b) / (std + eps), b = inf{x : share of the group's rewards <= x is >= K} (QAE, arXiv 2509.22611)."""

    method: Literal["quantile"]
    compares_group: ClassVar[bool] = True
    quantile: float = Field(0.4, gt=0, lt=1)
    """K: 0.4 holds entropy down, 0.6 holds it up."""
    eps: float = Field(1e-6, ge=0)
    """Added to the standard deviation."""


class SmoothedAdvantage(AdvantageVariant):
    """DCPO's smoothed advantage: this group's and the prompt's history's, whichever is smaller (arXiv 2509.02333)."""

    method: Literal["smoothed"]
    compares_group: ClassVar[bool] = True
    eps: float = Field(1e-6, ge=0)
    """Added to both standard deviations."""


Advantage = Annotated[
    DrGrpo | Grpo | Rloo | ReinforcePlusPlus | ReinforcePlusPlusBaseline | QuantileAdvantage | SmoothedAdvantage,
    Field(discriminator="method"),
]


class ShapingVariant(Variant):
    """A bonus, and what it says of itself."""

    @property
    @abstractmethod
    def tells_tokens_apart(self) -> bool:
        """Whether the tokens of a response may get different advantages from it."""


class PerplexityBonus(ShapingVariant):
    """CDE's actor bonus on the reward: R + omega min(|R| / kappa, alpha B), B = -mean log p of the response
    (arXiv 2509.09675).

    R is the verifier's reward: without the overlong penalty, and 0 for the partial credit of a wrong answer."""

    tells_tokens_apart: ClassVar[bool] = False
    alpha: float = Field(1.0, gt=0)
    """Scale of the bonus."""
    kappa: float = Field(3.0, gt=0)
    """The bonus is at most omega |R| / kappa."""
    omega: float = Field(1.0, ge=0)
    """Weight of the bonus at the first step."""
    decay_factor: float = Field(1.0, gt=0, le=1)
    """omega is multiplied by this ..."""
    decay_every_steps: int = Field(50, ge=1)
    """... every so many steps (the paper's staircase)."""


class EntropyAdvantage(ShapingVariant):
    """A + min(alpha H, |A| / kappa) per token, H detached (arXiv 2506.14758)."""

    tells_tokens_apart: ClassVar[bool] = True
    alpha: float = Field(0.4, gt=0)
    """Scale of the entropy."""
    kappa: float = Field(2.0, gt=1)
    """Above 1, so that the sign of A stays."""


class ShapingConfig(Config):
    """Changes to rewards before, and to advantages after, the advantage method. Each is absent or on."""

    perplexity: PerplexityBonus | None = None
    """CDE's bonus for surprising responses."""
    entropy: EntropyAdvantage | None = None
    """Larger advantages where the policy is uncertain."""

    @property
    def on(self) -> dict[str, ShapingVariant]:
        """The bonuses that are on, by field."""
        return {name: value for name, value in self if isinstance(value, ShapingVariant)}
