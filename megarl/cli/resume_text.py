"""What is said of a run that goes on, before it does."""

from collections.abc import Mapping, Sequence
from typing import Any

from megarl.checkpoint.run_checkpoint import RunCheckpoint
from megarl.cli.paths import shown_path
from megarl.config.changes import ConfigChange, describe_effect
from megarl.config.run import RunConfig
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.versions import collect_versions


def describe_going_on(
    run: RunDirectory, checkpoint: RunCheckpoint | None, config: RunConfig, changes: Sequence[ConfigChange]
) -> list[str]:
    """From where the run goes on, and what is other than it was."""
    if checkpoint is None:
        return [
            f"resume no complete checkpoint in {shown_path(run.checkpoints)}: the run starts over at step 1, in the "
            "same directory",
            *(f"change {change}" for change in changes),
        ]
    about = f"resume after step {checkpoint.step} of {config.train.steps}, from {shown_path(checkpoint.path)}"
    return [
        about,
        *(f"change {change} ({describe_effect(change, config)})" for change in changes),
        *_describe_versions(checkpoint),
    ]


def _describe_versions(checkpoint: RunCheckpoint) -> list[str]:
    """What can change numbers, and is another than what wrote the checkpoint: packages, and megarl's own code."""
    before, now = map(_versions_by_name, (checkpoint.manifest.versions, collect_versions()))
    return [
        f"warning: {name} was {before.get(name, 'absent')} when the checkpoint was written and is "
        f"{now.get(name, 'absent')}: the run may not go on exactly"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _versions_by_name(versions: Mapping[str, Any]) -> dict[str, str]:
    """Of `collect_versions`."""
    names = dict(versions.get("packages", {}))
    if git := versions.get("git"):
        names["the revision of megarl"] = git["revision"]
    return names
