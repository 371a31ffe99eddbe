"""Which metrics are compared between groups of runs: a figure each. Data only.

Where a figure shows an effect on the entropy, upwards raises it, as in `panels`.
"""

from dataclasses import dataclass

from megarl.report.figure import Axis


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A metric over the steps, a line per group."""

    key: str
    metric: str
    title: str
    subtitle: str
    y_title: str
    scale: float = 1.0
    """Factor on every value; -1 turns a metric that counts downwards."""
    axis: Axis = "from_zero"
    min_span: float = 0.0


@dataclass(frozen=True)
class Section:
    """Figures under a heading."""

    title: str
    figures: tuple[Compared, ...]


LEARNING = Section(
    "Entropy and reward",
    (
        Compared(
            key="entropy",
            metric="actor/entropy",
            title="Policy entropy",
            subtitle="exact, mean over response tokens",
            y_title="nats per token",
            min_span=0.01,
        ),
        Compared(
            key="entropy_over_start",
            metric="actor/entropy_over_start",
            title="Entropy over its start",
            subtitle="before the step's updates, over that of the run's first step",
            y_title="share of the first step's",
            min_span=0.02,
        ),
        Compared(
            key="reward",
            metric="reward/mean",
            title="Reward",
            subtitle="mean over the responses of a step",
            y_title="reward",
            axis="data",
            min_span=0.02,
        ),
        Compared(
            key="loss",
            metric="sft/loss",
            title="Loss",
            subtitle="mean cross-entropy per answer token",
            y_title="nats per token",
            axis="data",
            min_span=0.02,
        ),
    ),
)


def _share(key: str, metric: str, title: str, subtitle: str, of: str = "response tokens") -> Compared:
    return Compared(
        key=key, metric=metric, title=title, subtitle=subtitle, y_title=f"% of {of}", scale=100, min_span=0.01
    )


CLIPPING = Section(
    "Clipped tokens",
    (
        _share("clip_low", "clip_ratio/low_mean", "Clip-low", "ratio below lo, A < 0"),
        _share("clip_high", "clip_ratio/high_mean", "Clip-high", "ratio above hi, A > 0"),
        _share("clip_dual", "clip_ratio/dual_mean", "Dual clip", "ratio above its bound, A < 0"),
        _share(
            "clip_low_of_negative",
            "clip_ratio/low_of_negative",
            "Clip-low, of negative advantages",
            "share of the tokens with A < 0",
            "tokens with A < 0",
        ),
        _share(
            "clip_high_of_positive",
            "clip_ratio/high_of_positive",
            "Clip-high, of positive advantages",
            "share of the tokens with A > 0",
            "tokens with A > 0",
        ),
        _share("clip_low_q5", "clip_ratio/low_q5", "Clip-low where uncertain", "of the fifth with the most entropy"),
        _share("clip_high_q5", "clip_ratio/high_q5", "Clip-high where uncertain", "of the fifth with the most entropy"),
    ),
)


def _effect(key: str, metric: str, title: str, subtitle: str, y_title: str, scale: float = 1.0) -> Compared:
    return Compared(key=key, metric=metric, title=title, subtitle=subtitle, y_title=y_title, scale=scale)


_BUDGET = "entropy change, nats per rate"
_THEOREM = "nats per rate × E[max(A, 0)]"

EFFECTS = Section(
    "What moves the entropy",
    (
        _effect("budget", "entropy/budget", "Entropy budget", "what is left after clipping; upwards: raises", _BUDGET),
        _effect(
            "removed_low",
            "entropy/budget_removed_low",
            "What clip-low did",
            "to the budget, with the run's advantages; upwards: raised",
            _BUDGET,
            -1,
        ),
        _effect(
            "removed_high",
            "entropy/budget_removed_high",
            "What clip-high did",
            "to the budget, with the run's advantages; upwards: raised",
            _BUDGET,
            -1,
        ),
        _effect(
            "budget_positive",
            "entropy/budget_positive_kept",
            "Budget of A > 0",
            "tokens that were not clipped; upwards: raises",
            _BUDGET,
        ),
        _effect(
            "budget_negative",
            "entropy/budget_negative_kept",
            "Budget of A < 0",
            "tokens that were not clipped; upwards: raises",
            _BUDGET,
        ),
        _effect(
            "contribution_low",
            "entropy/clip_low_contribution",
            "CL: Theorem 1's low side",
            "if rewards were random, ANY sign of A; upwards: raises",
            _THEOREM,
        ),
        _effect(
            "contribution_high",
            "entropy/clip_high_contribution",
            "CH, sign turned: Theorem 1's high side",
            "if rewards were random, ANY sign of A; upwards: raises",
            _THEOREM,
            -1,
        ),
    ),
)

SAMPLES = Section(
    "Responses and updates",
    (
        Compared(
            key="response_length",
            metric="response_length/mean",
            title="Response length",
            subtitle="end-of-sequence included",
            y_title="tokens",
            min_span=4,
        ),
        _share(
            "cut_off",
            "response_length/clip_ratio",
            "Responses cut off",
            "at rollout.max_response_tokens",
            "responses",
        ),
        Compared(
            key="logp_diff",
            metric="rollout/logp_diff_mean",
            title="Trainer against vLLM",
            subtitle="mean |difference| of the same tokens' log-probs",
            y_title="nats, logarithmic",
            axis="log",
        ),
        Compared(
            key="policy_change",
            metric="actor/ppo_kl",
            title="Policy change within a step",
            subtitle="mean of old_logp - logp over response tokens",
            y_title="nats per token",
            min_span=1e-5,
        ),
        Compared(
            key="grad_norm",
            metric="actor/grad_norm",
            title="Gradient norm",
            subtitle="global, before clipping",
            y_title="L2 norm",
        ),
    ),
)

SPEED = Section(
    "Time",
    (
        Compared(
            key="step_seconds",
            metric="timing_s/step",
            title="Time of a step",
            subtitle="wall-clock",
            y_title="seconds",
        ),
        Compared(
            key="throughput",
            metric="perf/tokens_per_s",
            title="Throughput",
            subtitle="prompt and response tokens trained on, per second of the whole step",
            y_title="tokens per second",
        ),
    ),
)
