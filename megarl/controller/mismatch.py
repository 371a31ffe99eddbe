"""Trainer against vLLM on the same tokens: the difference of their log-probs."""

from collections.abc import Sequence

from megarl.config.run import RunConfig
from megarl.records import Rollout, TokenScores
from megarl.telemetry.metrics import Max, Mean, Metrics


class LogpMismatchError(RuntimeError):
    """Policy and vLLM disagree about the same tokens under what should be the same weights."""


def compute_logp_diff(rollouts: Sequence[Rollout], scores: Sequence[TokenScores]) -> Metrics:
    """rollout/logp_diff_mean and _max: |old_logp - behavior_logp| over all response tokens, nats."""
    total, count, largest = 0.0, 0, 0.0
    for rollout, scored in zip(rollouts, scores, strict=True):
        if len(scored.old_logp) != len(rollout.response):
            raise ValueError(
                f"sample {scored.sample_id}: {len(rollout.response)} response tokens, "
                f"{len(scored.old_logp)} trainer log-probs"
            )
        differences = [abs(old - new) for old, new in zip(scored.old_logp, rollout.behavior_logp, strict=True)]
        total += sum(differences)
        count += len(differences)
        largest = max(largest, *differences, 0.0)
    return {"rollout/logp_diff_mean": Mean(total, count), "rollout/logp_diff_max": Max(largest)}


def check_first_step(difference: Metrics, config: RunConfig) -> None:
    """LogpMismatchError when the first step's mean difference is above rollout.max_logp_diff (or NaN)."""
    found, bound = difference["rollout/logp_diff_mean"].value, config.rollout.max_logp_diff
    if found <= bound:
        return
    raise LogpMismatchError(
        f"on the first step trainer and vLLM differ by {found:.4g} nats per token on average (largest "
        f"{difference['rollout/logp_diff_max'].value:.4g}), above rollout.max_logp_diff {bound:g}. Both read the same "
        "weights and no update has happened, so one of them computes another model. Suspect, in this order: "
        "vllm_overrides that change the model or its dtype or quantise it; another temperature on one side; "
        "megatron_overrides; a config.json whose RoPE or tied embeddings one side reads differently. "
        "Compare both with transformers on one prompt: the side that disagrees with it is wrong. Differences near "
        "0.01 are normal in bfloat16; if this one is expected, raise the bound"
    )
