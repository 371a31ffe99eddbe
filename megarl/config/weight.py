"""Plug point 4: token weights, detached and multiplied together, and how weighted tokens become one number."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megarl.config.base import Config, Unbounded
from megarl.config.credit import EntropyFlow, NegativeScale, Stare
from megarl.config.facts import LargestWeight, NotBelow, RuleName
from megarl.config.weight_variant import WeightVariant


class TruncatedImportance(WeightVariant):
    """TIS: min(rho, cap), rho = exp(old_logp - behavior_logp), against the trainer-vLLM mismatch."""

    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "corrects"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("tis",)
    level: Literal["token", "sequence"] = "token"
    """sequence: the product over the response."""
    cap: Annotated[Unbounded, LargestWeight(), NotBelow("floor")] = Field(2.0, gt=0)
    """Largest weight (a ratio); inf is none."""
    floor: float = Field(0.0, ge=0)
    """Smallest weight; 0 is off."""
    normalise: bool = False
    """Divide by the mean weight over all response tokens of the mini-batch."""

    @property
    def tells_tokens_apart(self) -> bool:
        return self.level == "token"


class MaskedImportance(WeightVariant):
    """MIS: rho where low <= rho <= high, else 0 (IcePop: tokens, 0.5 and 5)."""

    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "corrects"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("importance_mask",)
    level: Literal["token", "sequence", "geometric"] = "token"
    """sequence: the product over the response. geometric: its geometric mean."""
    low: float = Field(0.5, ge=0)
    """Smallest ratio kept."""
    high: Annotated[Unbounded, NotBelow("low")] = Field(5.0, gt=0)
    """Largest ratio kept; inf is no bound."""

    @property
    def tells_tokens_apart(self) -> bool:
        return self.level == "token"


class SequenceRejection(WeightVariant):
    """Keeps a response where a mean over its tokens of the trainer-vLLM log ratio lies inside bounds."""

    tells_tokens_apart: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "filters"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("sequence_rejection",)
    statistic: Literal["k1", "k2", "k3"] = "k1"
    """k1: exp(mean log rho) in [low, high] (the geometric mean). k2: mean (log rho)^2 / 2 <= high.
    k3: mean (rho - 1 - log rho) <= high."""
    low: float = Field(0.999, ge=0)
    """Lower bound of the geometric mean; k2 and k3 have none."""
    high: Annotated[Unbounded, NotBelow("low", when=("statistic", "k1"))] = Field(1.001, gt=0)
    """Upper bound; inf is none."""


class OffPolicySequenceMask(WeightVariant):
    """OPSM (DeepSeek-V3.2): drops a response where A < 0 and mean log(old / current) is above a threshold."""

    tells_tokens_apart: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = True
    rules: ClassVar[tuple[RuleName, ...]] = ("opsm",)
    threshold: float = Field(0.5, gt=0)
    """Nats per token (0.5 in TRL, 1e-4 in slime)."""


class HighEntropyMask(WeightVariant):
    """Only the most uncertain tokens are trained on (80/20, arXiv 2506.01939)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("low_entropy",)
    fraction: float = Field(0.2, gt=0, le=1)
    """Share of the mini-batch's response tokens, by entropy, that is kept; with all that tie at its edge, as the first
    tokens of a group do."""


class ClipCov(WeightVariant):
    """Drops a few random tokens whose covariance of log-prob and advantage is high (arXiv 2505.22617)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("clip_cov",)
    fraction: float = Field(2e-4, gt=0, le=1)
    """Tokens to drop, of all response tokens of the mini-batch; at least one."""
    low: float = 1.0
    """Only tokens with a covariance above this are eligible ..."""
    high: Annotated[float, NotBelow("low")] = 5.0
    """... and below this, and not clipped already."""


class Steer(WeightVariant):
    """Smaller weight where a token would move the entropy more (STEER, arXiv 2510.10150)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    shape: Literal["exponential", "linear"] = "exponential"
    """How the weight falls with the size of the predicted entropy change."""
    low: float = Field(0.8, gt=0, le=1)
    """Smallest weight."""
    high: float = Field(1.2, ge=1)
    """linear: largest weight. exponential starts at 1."""


class ClipB(WeightVariant):
    """Drops A < 0 tokens with S - mean(S) < -mu std(S), S = p (log p + H) (Clip_B, arXiv 2602.03392)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("clip_b",)
    mu: float = Field(2.5, gt=0)
    """Standard deviations."""


class ClipV(WeightVariant):
    """Drops the worst A < 0 tokens with x > mu std(x), x = sum p^2 (log p + H) - S (Clip_V, arXiv 2602.03392)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("clip_v",)
    mu: float = Field(8.5, gt=0)
    """Standard deviations."""
    max_fraction: float = Field(1e-4, gt=0, le=1)
    """At most this share of the response tokens is dropped."""


class EntropyRatioClip(WeightVariant):
    """ERC: only tokens whose entropy ratio H / H_old lies inside (low, high) are trained on (arXiv 2512.05591)."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = True
    rules: ClassVar[tuple[RuleName, ...]] = ("erc",)
    low: float = Field(0.95, ge=0)
    """Lower bound, exclusive."""
    high: Annotated[Unbounded, NotBelow("low")] = Field(1.05, gt=0)
    """Upper bound, exclusive; inf is none."""


class PositiveScale(WeightVariant):
    """Multiplies tokens with A > 0 (positive-advantage reweighting, arXiv 2511.05993)."""

    tells_tokens_apart: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    scale: float = Field(1.0, gt=0)
    """The factor, and where objective.controllers.positive_scale starts."""


class MatchedControl(WeightVariant):
    """The control of a clip: its bounds drop nothing, a coin drops as many tokens instead. On each side, A < 0 for
    clip-low and A > 0 for clip-high, exactly as many as the bounds would drop in the mini-batch, whatever their ratio.
    """

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = True
    rules: ClassVar[tuple[RuleName, ...]] = ("matched",)


class WeightsConfig(Config):
    """Token weights; each is absent or on, and those that are on multiply. None changes the aggregation's divisor."""

    tis: TruncatedImportance | None = None
    """Truncated importance weights."""
    importance_mask: MaskedImportance | None = None
    """Masked importance weights (MIS, IcePop)."""
    sequence_rejection: SequenceRejection | None = None
    """Rejection of mismatched responses."""
    opsm: OffPolicySequenceMask | None = None
    """Off-policy sequence mask."""
    high_entropy: HighEntropyMask | None = None
    """80/20 mask."""
    clip_cov: ClipCov | None = None
    """Clip-Cov."""
    steer: Steer | None = None
    """STEER."""
    clip_b: ClipB | None = None
    """Clip_B."""
    clip_v: ClipV | None = None
    """Clip_V."""
    erc: EntropyRatioClip | None = None
    """Entropy ratio clipping."""
    positive_scale: PositiveScale | None = None
    """Reweighting of positive advantages."""
    matched: MatchedControl | None = None
    """A coin in place of the clip's bounds, which drops as many tokens."""
    negative_scale: NegativeScale | None = None
    """Reweighting of negative advantages."""
    stare: Stare | None = None
    """STARE."""
    entropy_flow: EntropyFlow | None = None
    """OPEFO."""

    @property
    def on(self) -> dict[str, WeightVariant]:
        """The weights that are on, by field."""
        return {name: value for name, value in self if isinstance(value, WeightVariant)}

    @property
    def reads_behavior(self) -> bool:
        """Whether a weight compares with vLLM's log-probs."""
        return any(weight.mismatch != "ignores" for weight in self.on.values())


class AggregationConfig(Config):
    """How token losses become the loss."""

    mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm", "seq-sum-token-mean", "token-sum"] = (
        "token-mean"
    )
    """How token losses become one number; verl's names. Normalisers are global over the mini-batch.
    seq-sum-token-mean: token means of the responses, added up (DCPO's OTM). token-sum: no divisor."""
    norm_length: int | None = Field(None, ge=1)
    """Constant divisor of seq-mean-token-sum-norm (Dr. GRPO); default: rollout.max_response_tokens."""
