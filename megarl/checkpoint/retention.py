"""Which of a run's checkpoints are kept. Pure but for `remove_superseded`."""

from collections.abc import Sequence
from pathlib import Path

from megarl.checkpoint.run_checkpoint import RunCheckpoint, list_checkpoints, remove_checkpoint
from megarl.config.checkpoint import CheckpointConfig


def kept_steps(checkpoints: Sequence[RunCheckpoint], config: CheckpointConfig) -> set[int]:
    """The steps of those that are kept: the last, every so many steps, and the best by a metric; of several that are
    equally good the latest. A checkpoint of a step without the metric is never the best."""
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    kept = set(steps[-config.keep_last :])
    if config.keep_every_steps:
        kept |= {step for step in steps if step % config.keep_every_steps == 0}
    if config.keep_best is not None:
        sign = 1.0 if config.keep_best_by == "max" else -1.0
        judged = {
            checkpoint.step: sign * checkpoint.manifest.metrics[config.keep_best]
            for checkpoint in checkpoints
            if config.keep_best in checkpoint.manifest.metrics
        }
        kept |= set(sorted(judged, key=lambda step: (judged[step], step))[-1:])
    return kept


def remove_superseded(directory: Path, config: CheckpointConfig) -> list[Path]:
    """Remove every complete checkpoint below `directory` that is not kept; what was removed, by step."""
    checkpoints = list_checkpoints(directory)
    kept = kept_steps(checkpoints, config)
    removed = [checkpoint for checkpoint in checkpoints if checkpoint.step not in kept]
    for checkpoint in removed:
        remove_checkpoint(checkpoint)
    return [checkpoint.path for checkpoint in removed]
