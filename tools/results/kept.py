"""Which numbers of a run are stored: those that a document, or a figure that compares runs, reads."""

import fnmatch

METRICS = (
    *("actor/entropy", "actor/old_entropy", "actor/entropy_over_start", "actor/lr", "actor/grad_norm"),
    *("actor/ppo_kl", "actor/kl_loss", "actor/masked_frac", "actor/advantage_*"),
    *("clip_ratio/*_mean", "clip_ratio/*_of_*", "clip_ratio/*_q5", "clip_bound/*", "matched/*", "control/*", "rule/*"),
    *("entropy/budget*", "entropy/clip_low_*", "entropy/clip_high_*", "entropy/region_*"),
    *("reward/mean", "reward/correct_mean", "response_length/mean", "response_length/clip_ratio"),
    *("rollout/logp_diff_mean", "timing_s/step", "eval/*"),
)
"""Patterns of names in metrics.jsonl."""

UPDATE_METRICS = (
    *("actor/lr", "actor/entropy", "actor/grad_norm", "entropy/budget", "entropy/budget_removed_*"),
    *("entropy/clip_low_contribution", "entropy/clip_high_contribution"),
    *("entropy/clip_low_difference", "entropy/clip_high_difference"),
    *("entropy/clip_low_surprisal", "entropy/clip_high_surprisal"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_bound/*", "control/loop_*"),
)
"""Patterns of names in updates.jsonl."""

BITS = 12
"""Of the mantissa, that an update's numbers keep: relative errors up to 1.2e-4, a third less to store."""


def is_kept(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern has the name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
