"""Which charts a run has: their metrics, titles and units. Data only; `charts` draws them.

Colours are those of Okabe and Ito (2008), distinct under every common colour blindness.
"""

from dataclasses import dataclass
from typing import Literal

from megarl.telemetry.names import PHASES

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, YELLOW, GREY = "#56B4E9", "#F0E442", "#9AA0A6"
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


LINE_PANELS: tuple[LinePanel, ...] = (
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
        subtitle="exact, mean over response tokens",
        y_title="nats per token",
        series=(Series(metric="actor/entropy", label="entropy", colour=BLUE),),
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
