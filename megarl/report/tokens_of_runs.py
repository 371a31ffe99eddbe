"""Whose tokens a page holds to be read."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megarl.config.run import TrainConfig
from megarl.report.groups import Group
from megarl.report.reader import StepUpdates, TokenSource
from megarl.report.token_view import format_tokens
from megarl.telemetry.run_directory import RunDirectory

MOST_RUNS = 8
"""Whose tokens a comparison holds: the first run of as many settings."""
_MAX_BYTES = 3_000_000


def token_source(run: RunDirectory, page: Path, *, name: str | None = None) -> TokenSource:
    """The run's rollouts as the page calls them; name: of the run there."""
    folder = os.path.relpath(run.rollouts, page.resolve().parent)
    return TokenSource(name=name or run.path.name, rollouts=run.rollouts, shown_folder=folder, updates=_updates(run))


def format_group_tokens(groups: Sequence[Group], page: Path) -> tuple[Markup | None, str | None]:
    """The reader for the first run with rollouts of each of the first `MOST_RUNS` settings; what cannot be shown."""
    chosen = [
        token_source(with_files[0], page, name=f"{group.label}, {with_files[0].path.name}")
        for group in groups
        if (with_files := [one.run for one in group.runs if any(one.run.rollouts.glob("step-*.parquet"))])
    ][:MOST_RUNS]
    return format_tokens(chosen, max_bytes=_MAX_BYTES) if chosen else (None, None)


def _updates(run: RunDirectory) -> StepUpdates | None:
    """From the run's own configuration; None where the directory has none that can be read. Only the section [train] is
    read, so the rest may be that of another version."""
    if not run.config_path.is_file():
        return None
    try:
        table: dict[str, Any] = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
        train = TrainConfig.model_validate(table.get("train", {}))
    except ValueError:
        return None  # the page says of the file itself that it is damaged
    return StepUpdates(count=train.updates_per_step, mini_batch_responses=train.mini_batch_responses)
