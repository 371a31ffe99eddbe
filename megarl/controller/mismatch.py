"""Trainer against vLLM on the same tokens: the difference of their log-probs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megarl.config.run import RunConfig
from megarl.records import Floats, Rollout, TokenScores, group_by_tokens
from megarl.telemetry.metrics import Mean, Metrics, declared

_SHOWN_SAMPLES = 8
_AT_ONCE = 1 << 13
"""Tokens that are looked at together: enough for numpy to be fast, few enough for a core's cache."""


class LogpMismatchError(RuntimeError):
    """Trainer and vLLM disagree about the same tokens under what should be the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogpDiff:
    """|old_logp - behavior_logp| over the response tokens of a step, nats."""

    mean: Mean
    largest: float

    def metrics(self) -> Metrics:
        """What is logged of it."""
        return declared({"rollout/logp_diff_mean": self.mean, "rollout/logp_diff_max": self.largest})


class NonFiniteLogpError(RuntimeError):
    """A log-prob is NaN or infinite before any loss was computed from it."""


def check_finite(rollouts: Sequence[Rollout], scores: Sequence[TokenScores]) -> None:
    """NonFiniteLogpError that says which side has such log-probs and in which samples."""
    found = {
        "the trainer's (old_logp)": [scored.sample_id for scored in scores if not _all_finite(scored.old_logp)],
        "the trainer's entropies": [scored.sample_id for scored in scores if not _all_finite(scored.old_entropy)],
        "vLLM's (behavior_logp)": [i for i, rollout in enumerate(rollouts) if not _all_finite(rollout.behavior_logp)],
    }
    if not any(found.values()):
        return
    sides = " and ".join(f"{side} in samples {_shown(ids)} of {len(rollouts)}" for side, ids in found.items() if ids)
    raise NonFiniteLogpError(
        f"log-probs are not finite: {sides}. No weight was changed. On both sides the weights are the cause: look at "
        "the checkpoint in model.path, or at the learning rate and gradient norm of the steps before. On one side "
        "that side's model is: look at its dtype, megatron_overrides or vllm_overrides"
    )


def compute_mean_entropy(scores: Sequence[TokenScores]) -> float:
    """Exact mean entropy over all response tokens before the first update, nats; NaN where there is no token, or where
    an entropy is not finite."""
    count = sum(len(scored.old_entropy) for scored in scores)
    if not count:
        return math.nan
    groups = group_by_tokens(scores, lambda scored: len(scored.old_entropy), at_least=_AT_ONCE)
    return sum_exactly(_join(scored.old_entropy for scored in group) for group in groups) / count


def sum_exactly(parts: Iterable[Floats]) -> float:
    """The sum, rounded once, however the numbers are dealt out; NaN where one of them is not finite.

    Numbers of one binary exponent add up without rounding in a double as long as they are fewer than 2^29; `fsum`
    rounds the sum of these sums.
    """
    of_exponent = np.zeros(_EXPONENTS)
    for values in parts:
        if not _all_finite(values):
            return math.nan
        mantissas, exponents = np.frexp(values)
        of_exponent += np.bincount(exponents + _LOWEST, weights=mantissas, minlength=_EXPONENTS)
    return math.fsum(math.ldexp(total, at - _LOWEST) for at, total in enumerate(of_exponent.tolist()))


_LOWEST = 149
_EXPONENTS = _LOWEST + 130
"""frexp gives a float32 an exponent from -148 to 128."""


def _all_finite(values: Floats) -> bool:
    return bool(np.isfinite(values).all())


def _shown(ids: Sequence[int]) -> str:
    return f"{list(ids[:_SHOWN_SAMPLES])}{' ...' if len(ids) > _SHOWN_SAMPLES else ''}"


def compute_logp_diff(rollouts: Sequence[Rollout], scores: Sequence[TokenScores]) -> LogpDiff:
    """The difference over all response tokens, not finite where a log-prob is not; ValueError where a response's
    log-probs are not one per token."""
    for rollout, scored in zip(rollouts, scores, strict=True):
        if len(scored.old_logp) != len(rollout.response):
            raise ValueError(
                f"sample {scored.sample_id}: {len(rollout.response)} response tokens, "
                f"{len(scored.old_logp)} trainer log-probs"
            )
    total, count, largest = 0.0, 0, 0.0
    pairs = zip(rollouts, scores, strict=True)
    for group in group_by_tokens(pairs, lambda pair: len(pair[0].response), at_least=_AT_ONCE):
        differences = _join(scored.old_logp for _, scored in group).astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf
            differences -= _join(rollout.behavior_logp for rollout, _ in group)
        np.abs(differences, out=differences)
        largest = max(largest, float(differences.max(initial=0.0)))
        for rollout, _ in group:
            size = len(rollout.response)
            of_response, differences = differences[:size], differences[size:]
            if len(of_response):
                # One after the other: numpy's own sum depends on how it blocks them.
                total += float(of_response.cumsum()[-1])
            count += len(of_response)
    return LogpDiff(mean=Mean(total, count), largest=largest)


def _join(parts: Iterable[Floats]) -> Floats:
    return np.concatenate(list(parts))


def check_logp_diff(difference: LogpDiff, *, step: int, config: RunConfig) -> None:
    """LogpMismatchError when the step's mean difference is above rollout.max_logp_diff (or NaN).

    The first step compares two readers of one checkpoint, every later one the weights that were published before it.
    """
    found, bound = difference.mean.value, config.rollout.max_logp_diff
    if found <= bound:
        return
    raise LogpMismatchError(
        f"step {step}: trainer and vLLM differ by {found:.4g} nats per token on average (largest "
        f"{difference.largest:.4g}), above rollout.max_logp_diff {bound:g}. {_FIRST if step == 1 else _LATER} "
        "Differences near 1e-6 are normal in float32 and 0.01 to 0.05 in bfloat16; if this one is expected, raise the "
        "bound"
    )


_FIRST = (
    "Both read the same weights and no update has happened, so one of them computes another model. Suspect, in this "
    "order: vllm_overrides that change the model or its dtype or quantise it; another temperature on one side; "
    "megatron_overrides; a config.json whose RoPE or tied embeddings one side reads differently. Compare both with "
    "transformers on one prompt: the side that disagrees with it is wrong."
)
_LATER = (
    "They agreed on the first step, so suspect the publication: the engines do not compute with the weights that were "
    "sent to them, though the bytes' checksums agreed. Or the policy has diverged: look at actor/grad_norm and "
    "actor/ppo_kl of the last steps."
)
