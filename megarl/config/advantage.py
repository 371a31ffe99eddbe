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


class FocalAdvantage(AdvantageVariant):
    """A = (1 - p)^(alpha - 1) (R - mean) over the group, p the mean kept within 0 and 1: harder prompts weigh more
    while few are solved. alpha = clip(3 (1 - P) / (2 P), 1, largest), P a running mean of p over the groups that are
    trained on, which a dynamic sampler chooses (FADE, arXiv 2607.01490)."""

    method: Literal["focal"]
    compares_group: ClassVar[bool] = True
    largest: float = Field(3.0, ge=1)
    """Largest alpha; 1 is dr_grpo."""
    rate: float = Field(0.02, gt=0, le=1)
    """Weight of a step's mean in P, which begins at 0.5."""


Advantage = Annotated[
    DrGrpo
    | Grpo
    | Rloo
    | ReinforcePlusPlus
    | ReinforcePlusPlusBaseline
    | QuantileAdvantage
    | SmoothedAdvantage
    | FocalAdvantage,
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


class GroupEntropy(ShapingVariant):
    """Shrinks A > 0 in groups of low entropy and A < 0 in groups of high entropy (GEPO, arXiv 2607.16850).

    A group's entropy is the mean of -log p over its response tokens when they were sampled. Low is below mean -
    low_width deviations of the step's groups, high is above mean + high_width deviations, each as a running mean."""

    tells_tokens_apart: ClassVar[bool] = False
    low_factor: float = Field(0.5, ge=0, le=1)
    """Factor of A > 0 in a group of low entropy (alpha_low)."""
    high_factor: float = Field(0.2, ge=0, le=1)
    """Factor of A < 0 in a group of high entropy (alpha_high)."""
    low_width: float = Field(0.2, ge=0)
    """beta_low."""
    high_width: float = Field(0.3, ge=0)
    """beta_high."""
    rate: float = Field(0.01, gt=0, le=1)
    """Weight of a step's thresholds in the running ones, which begin at the first step's (gamma)."""


class ShapingConfig(Config):
    """Changes to rewards before, and to advantages after, the advantage method. Each is absent or on."""

    perplexity: PerplexityBonus | None = None
    """CDE's bonus for surprising responses."""
    entropy: EntropyAdvantage | None = None
    """Larger advantages where the policy is uncertain."""
    group_entropy: GroupEntropy | None = None
    """Smaller advantages where a group's entropy would be driven further out."""

    @property
    def on(self) -> dict[str, ShapingVariant]:
        """The bonuses that are on, by field."""
        return {name: value for name, value in self if isinstance(value, ShapingVariant)}
