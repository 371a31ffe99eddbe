"""Which charts a run has: their metrics, titles and units. Data only; `charts` draws them.

Colours are those of Okabe and Ito (2008), distinct under every common colour blindness.
"""

from dataclasses import dataclass
from typing import Literal

from megarl.telemetry.names import PHASES

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, YELLOW, PURPLE, GREY = "#56B4E9", "#F0E442", "#CC79A7", "#9AA0A6"
PHASE_COLOURS = dict(zip(PHASES, (BLUE, YELLOW, GREEN, ORANGE, SKY), strict=True)) | {"other": GREY}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    metric: str
    label: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class LinePanel:
    """A chart of one or more metrics over the steps."""

    key: str
    """File name without ending."""
    title: str
    subtitle: str
    y_title: str
    series: tuple[Series, ...]
    scale: float = 1.0
    """Factor on every value: 100 turns a share into percent."""
    axis: Literal["from_zero", "data", "log"] = "from_zero"
    """Where the value axis starts: at zero; at the data; or a logarithmic one, without values that are not positive."""
    smooth: bool = False
    """Add the moving mean of the one series."""
    relative_to_start: bool = False
    """Mark the first value of the first series and say which share of it the last one is."""


@dataclass(frozen=True, kw_only=True)
class StackPanel:
    """A chart of parts that add up, over the steps."""

    key: str
    title: str
    subtitle: str
    y_title: str
    series: tuple[Series, ...]
    """The parts, first at the axis."""
    scale: float = 1.0
    total: bool = False
    """Draw the sum of the parts as a line."""
    top: float | None = None
    """Upper end of the value axis; None: from the data."""


@dataclass(frozen=True, kw_only=True)
class HeatBand:
    """Some rows of a map that share a colour scale."""

    label: str
    rows: tuple[tuple[str, str], ...]
    """(label, metric), from the top."""
    colours: tuple[str, str]
    """Of zero and of the largest value."""


@dataclass(frozen=True, kw_only=True)
class HeatPanel:
    """A map of shares: classes of tokens from top to bottom, steps from left to right."""

    key: str
    title: str
    subtitle: str
    y_title: str
    bands: tuple[HeatBand, ...]
    scale: float = 1.0


Panel = LinePanel | StackPanel | HeatPanel


def _sides(metric: str) -> tuple[Series, Series]:
    """The low and the high side of `entropy/clip_<side>_<metric>`."""
    return (
        Series(metric=f"entropy/clip_low_{metric}", label="clip-low", colour=BLUE),
        Series(metric=f"entropy/clip_high_{metric}", label="clip-high", colour=VERMILION),
    )


def _quintiles(side: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{side} q{q}", f"clip_ratio/{side}_q{q}") for q in (5, 4, 3, 2, 1))


_RULES = {
    "cap": ("weight capped", SKY),
    "dppo": ("DPPO", VERMILION),
    "tis": ("TIS", BLUE),
    "importance_mask": ("importance mask", ORANGE),
    "sequence_rejection": ("sequence rejection", GREEN),
    "opsm": ("OPSM", PURPLE),
    "low_entropy": ("80/20 mask", GREY),
    "clip_cov": ("Clip-Cov", VERMILION),
    "clip_b": ("Clip_B", GREEN),
    "clip_v": ("Clip_V", SKY),
    "erc": ("ERC", ORANGE),
    "kl_cov": ("KL-Cov", PURPLE),
}
"""Rule: (label, colour). Runs use few of them at a time; those that share a colour are rarely combined."""

_ENTROPY_PANELS: tuple[Panel, ...] = (
    LinePanel(
        key="clip_contributions",
        title="What clipping does to the entropy",
        subtitle="mean of r 1[clipped side] (N - Q): clip-low raises the entropy by it, clip-high lowers it",
        y_title="nats per token",
        series=_sides("contribution"),
    ),
    LinePanel(
        key="clip_differences",
        title="Clipped sides against all tokens",
        subtitle="E[Q] - E[Q | side]: positive where clipping acts on the entropy as usual",
        y_title="nats",
        series=_sides("difference"),
    ),
    LinePanel(
        key="clip_surprisal",
        title="Surprisal of the clipped sides",
        subtitle="E[-log p | side] - H: positive where a side holds the rarer tokens",
        y_title="nats",
        series=_sides("surprisal"),
    ),
    StackPanel(
        key="entropy_budget",
        title="Entropy budget of the update",
        subtitle="first-order change per unit of learning rate; upwards raises the entropy, black is the sum",
        y_title="nats per mini-batch",
        series=(
            Series(metric="entropy/budget_positive_kept", label="A > 0, kept", colour=VERMILION),
            Series(metric="entropy/budget_negative_kept", label="A < 0, kept", colour=BLUE),
            Series(metric="entropy/budget_positive_clipped", label="A > 0, clipped", colour="#F3B58A"),
            Series(metric="entropy/budget_negative_clipped", label="A < 0, clipped", colour="#99C6E3"),
        ),
        total=True,
    ),
    StackPanel(
        key="budget_removed",
        title="Budget that clipping removed",
        subtitle="upwards: clipping took away pushes that raise the entropy",
        y_title="nats per mini-batch",
        series=(
            Series(metric="entropy/budget_removed_low", label="clip-low", colour=BLUE),
            Series(metric="entropy/budget_removed_high", label="clip-high", colour=VERMILION),
            Series(metric="entropy/budget_removed_dual", label="dual clip", colour=GREEN),
        ),
        total=True,
    ),
    HeatPanel(
        key="clip_by_entropy",
        title="Clipped tokens by entropy",
        subtitle="share of each entropy quintile's tokens; q5 holds the most uncertain ones",
        y_title="side and quintile",
        bands=(
            HeatBand(label="clip-high, %", rows=_quintiles("high"), colours=("#FDF0E8", VERMILION)),
            HeatBand(label="clip-low, %", rows=_quintiles("low"), colours=("#E8F2F9", BLUE)),
        ),
        scale=100,
    ),
    StackPanel(
        key="regions",
        title="Tokens by advantage and surprisal",
        subtitle="common: -log p < H, rare: >; arrow: where the update pushes the entropy; the rest: A = 0",
        y_title="% of response tokens",
        series=(
            Series(metric="entropy/region_e1", label="E1: A > 0, common, H ↓", colour=BLUE),
            Series(metric="entropy/region_e4", label="E4: A < 0, rare, H ↓", colour=SKY),
            Series(metric="entropy/region_e3", label="E3: A < 0, common, H ↑", colour=ORANGE),
            Series(metric="entropy/region_e2", label="E2: A > 0, rare, H ↑", colour=VERMILION),
        ),
        scale=100,
        top=100,
    ),
    LinePanel(
        key="rules",
        title="Tokens that a rule acted on",
        subtitle="weights, masks and caps besides clipping",
        y_title="% of response tokens",
        series=tuple(
            Series(metric=f"rule/{rule}_frac", label=label, colour=colour) for rule, (label, colour) in _RULES.items()
        ),
        scale=100,
    ),
)
"""How the entropy and the clipping hang together."""

PANELS: tuple[Panel, ...] = (
    LinePanel(
        key="reward",
        title="Reward",
        subtitle="mean over the responses of a step",
        y_title="reward",
        series=(Series(metric="reward/mean", label="per step", colour=BLUE),),
        axis="data",
        smooth=True,
    ),
    LinePanel(
        key="loss",
        title="Loss",
        subtitle="mean cross-entropy per answer token",
        y_title="nats per token",
        series=(Series(metric="sft/loss", label="per step", colour=BLUE),),
        axis="data",
        smooth=True,
    ),
    LinePanel(
        key="entropy",
        title="Policy entropy",
        subtitle="exact",
        y_title="nats per token",
        series=(
            Series(metric="actor/entropy", label="mean over tokens", colour=BLUE),
            Series(metric="actor/entropy_response_mean", label="mean over responses", colour=SKY),
        ),
        relative_to_start=True,
    ),
    LinePanel(
        key="clip_fractions",
        title="Clipped tokens",
        subtitle="tokens whose gradient the clip removes, by side",
        y_title="% of response tokens",
        series=(
            Series(metric="clip_ratio/low_mean", label="clip-low (A < 0)", colour=BLUE),
            Series(metric="clip_ratio/high_mean", label="clip-high (A > 0)", colour=VERMILION),
            Series(metric="clip_ratio/dual_mean", label="dual clip (A < 0)", colour=GREEN),
        ),
        scale=100,
    ),
    *_ENTROPY_PANELS,
    LinePanel(
        key="response_length",
        title="Response length",
        subtitle="tokens per response, end-of-sequence included",
        y_title="tokens",
        series=(
            Series(metric="response_length/mean", label="mean", colour=BLUE),
            Series(metric="response_length/max", label="longest", colour=ORANGE),
        ),
    ),
    LinePanel(
        key="policy_change",
        title="Policy change within a step",
        subtitle="mean of old_logp - logp over response tokens",
        y_title="nats per token",
        series=(Series(metric="actor/ppo_kl", label="ppo_kl", colour=BLUE),),
    ),
    LinePanel(
        key="grad_norm",
        title="Gradient norm",
        subtitle="global, before clipping",
        y_title="L2 norm",
        series=(Series(metric="actor/grad_norm", label="gradient norm", colour=BLUE),),
    ),
    LinePanel(
        key="logp_diff",
        title="Trainer against vLLM",
        subtitle="|difference| of the same response tokens' log-probs",
        y_title="nats, logarithmic",
        series=(
            Series(metric="rollout/logp_diff_mean", label="mean", colour=BLUE),
            Series(metric="rollout/logp_diff_max", label="largest", colour=VERMILION),
        ),
        axis="log",
    ),
)
