"""Which charts a run has: their metrics, titles and units. Data only; `single` fills them.

Where a chart shows an effect on the entropy, upwards raises it; a metric with the opposite sign in metrics.jsonl is
drawn with `factor` -1. The terms its title uses are those of `glossary`.
"""

from dataclasses import dataclass

from megarl.report.figure import Axis
from megarl.telemetry.names import PHASES

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, GREY = "blue", "vermilion", "green", "orange", "sky", "purple", "grey"
"""Names in `colours.LIGHT` and `colours.DARK`."""

PHASE_COLOURS = dict(zip(PHASES, (BLUE, "yellow", GREEN, ORANGE, SKY), strict=True)) | {"other": GREY}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    metric: str
    label: str
    colour: str
    factor: float = 1.0
    """-1 where the metric counts downwards what the chart shows upwards."""
    only_if_moving: bool = False
    """Leave the line out where its value never changes."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Titled:
    """What every chart says of itself."""

    key: str
    """File name without ending."""
    title: str
    subtitle: str
    y_title: str


@dataclass(frozen=True, kw_only=True)
class LinePanel(_Titled):
    """A chart of one or more metrics over the steps."""

    series: tuple[Series, ...]
    scale: float = 1.0
    """Factor on every value: 100 turns a share into percent."""
    axis: Axis = "from_zero"
    min_span: float = 0.0
    """The axis covers at least this much, in its own unit, so that what barely moves looks flat."""
    smooth: bool = False
    """Add the moving mean of the one series."""
    relative_to_start: bool = False
    """Mark the first value of the first series and say which share of it the last one is."""


@dataclass(frozen=True, kw_only=True)
class StackPanel(_Titled):
    """A chart of parts that add up, over the steps."""

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
    colour: str
    """Of the largest value; zero has its pale tint."""


@dataclass(frozen=True, kw_only=True)
class HeatPanel(_Titled):
    """A map of shares: classes of tokens from top to bottom, steps from left to right."""

    bands: tuple[HeatBand, ...]
    scale: float = 1.0


Panel = LinePanel | StackPanel | HeatPanel


def _sides(metric: str) -> tuple[Series, ...]:
    """Theorem 1's or 2's term of the low side, that of the high side, which enters with a minus, and the dual clip's,
    which runs without one do not log."""
    return (
        Series(metric=f"entropy/clip_low_{metric}", label="low side, X", colour=BLUE),
        Series(metric=f"entropy/clip_high_{metric}", label="high side, Y (sign turned)", colour=VERMILION, factor=-1),
        Series(metric=f"entropy/clip_dual_{metric}", label="dual clip, D", colour=GREEN),
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
    "matched": ("matched control's coin", BLUE),
}
"""Rule: (label, colour). Runs use few of them at a time; those that share a colour are rarely combined."""

_ENTROPY_PANELS: tuple[Panel, ...] = (
    StackPanel(
        key="budget_removed",
        title="What clipping did to the entropy",
        subtitle="effect on the entropy budget, with this run's advantages; upwards: it raised the entropy",
        y_title="entropy change, nats per rate",
        series=(
            Series(metric="entropy/budget_removed_low", label="clip-low", colour=BLUE, factor=-1),
            Series(metric="entropy/budget_removed_high", label="clip-high", colour=VERMILION, factor=-1),
            Series(metric="entropy/budget_removed_dual", label="dual clip", colour=GREEN, factor=-1),
        ),
        total=True,
    ),
    StackPanel(
        key="entropy_budget",
        title="Entropy budget of an update",
        subtitle="first order of one plain gradient step: compare signs and shares, not sizes (Adam); black: sum",
        y_title="entropy change, nats per rate",
        series=(
            Series(metric="entropy/budget_positive_kept", label="A > 0, kept", colour=VERMILION),
            Series(metric="entropy/budget_negative_kept", label="A < 0, kept", colour=BLUE),
            Series(metric="entropy/budget_positive_clipped", label="A > 0, clipped", colour="vermilion-tint"),
            Series(metric="entropy/budget_negative_clipped", label="A < 0, clipped", colour="blue-tint"),
        ),
        total=True,
    ),
    LinePanel(
        key="clip_contributions",
        title="If rewards were random: Theorem 1",
        subtitle="clip terms over X = {r < lo}, Y = {r > hi}, ANY sign of A; upwards: the clip raises the entropy",
        y_title="nats per rate × E[max(A, 0)]",
        series=_sides("contribution"),
    ),
    LinePanel(
        key="clip_differences",
        title="If rewards were random: Theorem 1, per clipped token",
        subtitle="E[Q] - E[Q | X] and E[Q | Y] - E[Q], any sign of A; upwards: the clip raises the entropy",
        y_title="nats",
        series=_sides("difference"),
        min_span=0.002,
    ),
    LinePanel(
        key="clip_surprisal",
        title="If rewards were random: Theorem 2, per clipped token",
        subtitle="natural gradient: E[-log p | X] - H and H - E[-log p | Y], any sign of A; upwards: raises",
        y_title="nats",
        series=_sides("surprisal"),
        min_span=0.02,
    ),
    HeatPanel(
        key="clip_by_entropy",
        title="Clipped tokens by entropy",
        subtitle="share of each entropy quintile's tokens; q5 holds the most uncertain ones",
        y_title="side and quintile",
        bands=(
            HeatBand(label="clip-high, %", rows=_quintiles("high"), colour=VERMILION),
            HeatBand(label="clip-low, %", rows=_quintiles("low"), colour=BLUE),
        ),
        scale=100,
    ),
    StackPanel(
        key="regions",
        title="Tokens by advantage and surprisal",
        subtitle="common: -log p < H, rare: >; arrow: push on the entropy by the sign of Q; the rest: A = 0",
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
        min_span=0.01,
    ),
)
"""How the entropy and the clipping hang together."""

_CONTROL_PANELS: tuple[Panel, ...] = (
    LinePanel(
        key="bounds",
        title="Bounds of the ratio",
        subtitle="distances from 1: low = 1 - lo, high = hi - 1; upwards: clips less",
        y_title="distance",
        series=(
            Series(metric="clip_bound/low_mean", label="low, token mean", colour=BLUE, only_if_moving=True),
            Series(metric="clip_bound/high_mean", label="high, token mean", colour=VERMILION, only_if_moving=True),
            Series(metric="control/flexec_low_at_0.5", label="low(p = 0.5), FlexEC", colour=SKY, dashed=True),
            Series(metric="control/flexec_high_at_0.5", label="high(p = 0.5), FlexEC", colour=ORANGE, dashed=True),
        ),
        min_span=0.02,
    ),
    LinePanel(
        key="closed_loop",
        title="Controller: closed-loop clipping",
        subtitle="entropy budget as a share of its size without bounds; apart: the bounds are at their end",
        y_title="share",
        series=(
            Series(metric="control/loop_wanted", label="wanted", colour=ORANGE, dashed=True),
            Series(metric="control/loop_measured", label="of the updates", colour=BLUE),
        ),
        min_span=0.1,
    ),
    LinePanel(
        key="entropy_coefficient",
        title="Controller: entropy bonus",
        subtitle="coefficient that acted in the step; upwards: a stronger push for entropy",
        y_title="coefficient",
        series=(Series(metric="control/entropy_coefficient", label="coefficient", colour=BLUE),),
        min_span=1e-3,
    ),
    LinePanel(
        key="positive_scale",
        title="Controller: weight of positive advantages",
        subtitle="weights.positive_scale in the step; upwards: tokens with A > 0 weigh more",
        y_title="factor",
        series=(Series(metric="control/positive_scale", label="factor", colour=VERMILION),),
        axis="data",
        min_span=0.1,
    ),
    LinePanel(
        key="reference_resets",
        title="Controller: reference resets",
        subtitle="renewals of the reference weights so far",
        y_title="resets",
        series=(Series(metric="control/reference_resets", label="resets", colour=GREEN),),
    ),
)
"""What moves during a run; a run draws those it logs."""

PANELS: tuple[Panel, ...] = (
    LinePanel(
        key="reward",
        title="Reward",
        subtitle="mean over the responses of a step",
        y_title="reward",
        series=(Series(metric="reward/mean", label="per step", colour=BLUE),),
        axis="data",
        min_span=0.02,
        smooth=True,
    ),
    LinePanel(
        key="loss",
        title="Loss",
        subtitle="mean cross-entropy per answer token",
        y_title="nats per token",
        series=(Series(metric="sft/loss", label="per step", colour=BLUE),),
        axis="data",
        min_span=0.02,
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
            Series(metric="control/entropy_target", label="target", colour=ORANGE, dashed=True),
        ),
        min_span=0.01,
        relative_to_start=True,
    ),
    LinePanel(
        key="clip_fractions",
        title="Clipped tokens",
        subtitle="ratio outside the bound of the advantage's side; tokens that a mask dropped count too",
        y_title="% of response tokens",
        series=(
            Series(metric="clip_ratio/low_mean", label="clip-low (A < 0)", colour=BLUE),
            Series(metric="clip_ratio/high_mean", label="clip-high (A > 0)", colour=VERMILION),
            Series(metric="clip_ratio/dual_mean", label="dual clip (A < 0)", colour=GREEN),
            Series(metric="clip_ratio/low_effective", label="clip-low, not masked", colour=SKY, dashed=True),
            Series(metric="clip_ratio/high_effective", label="clip-high, not masked", colour=ORANGE, dashed=True),
        ),
        scale=100,
        min_span=0.01,
    ),
    LinePanel(
        key="clip_of_sign",
        title="Clipped tokens of each sign",
        subtitle="share of the tokens with that sign of the advantage",
        y_title="% of the sign's tokens",
        series=(
            Series(metric="clip_ratio/low_of_negative", label="clip-low, of A < 0", colour=BLUE),
            Series(metric="clip_ratio/high_of_positive", label="clip-high, of A > 0", colour=VERMILION),
        ),
        scale=100,
        min_span=0.01,
    ),
    *_ENTROPY_PANELS,
    *_CONTROL_PANELS,
    LinePanel(
        key="response_length",
        title="Response length",
        subtitle="tokens per response, end-of-sequence included",
        y_title="tokens",
        series=(
            Series(metric="response_length/mean", label="mean", colour=BLUE),
            Series(metric="response_length/max", label="longest", colour=ORANGE),
        ),
        min_span=4,
    ),
    LinePanel(
        key="policy_change",
        title="Policy change within a step",
        subtitle="mean of old_logp - logp over response tokens",
        y_title="nats per token",
        series=(Series(metric="actor/ppo_kl", label="ppo_kl", colour=BLUE),),
        min_span=1e-5,
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
    LinePanel(
        key="throughput",
        title="Throughput",
        subtitle="prompt and response tokens trained on, per second of the whole step",
        y_title="tokens per second",
        series=(Series(metric="perf/tokens_per_s", label="throughput", colour=BLUE),),
    ),
    StackPanel(
        key="publication",
        title="Publishing the weights",
        subtitle="slowest rank or engine in each part; sampling rests from drain on",
        y_title="seconds",
        series=(
            Series(metric="timing_s/publish_pack", label="pack", colour=BLUE),
            Series(metric="timing_s/publish_checksum", label="checksum", colour=SKY),
            Series(metric="timing_s/publish_wire", label="wire", colour=GREEN),
            Series(metric="timing_s/publish_drain", label="drain", colour=GREY),
            Series(metric="timing_s/publish_install", label="install", colour=ORANGE),
            Series(metric="timing_s/publish_resume", label="resume", colour=VERMILION),
        ),
    ),
)
