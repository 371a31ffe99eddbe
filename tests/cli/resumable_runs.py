"""Runs that were killed, with checkpoints of steps, and what going on with them says."""

import json
from pathlib import Path
from typing import Any

import pytest

from megarl.checkpoint.run_checkpoint import PendingCheckpoint, RunCheckpoint
from megarl.cli.resume import Arguments, Resumed, resume
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.checkpoint.manifests import make_manifest
from tests.telemetry.runs import make_config


def make_run(parent: Path, *steps: int, config: RunConfig | None = None) -> RunDirectory:
    """A run of this process's past that was killed after some steps; it has checkpoints of these."""
    config = config or make_config(parent, model={"path": str(parent / "model")}, train={"steps": 30})
    run = RunDirectory.create(config, source=None, verb="train")
    for step in steps:
        save(run, step, config)
    run.write_state(RunState(status="interrupted", step=max(steps, default=0)))
    return run


def save(run: RunDirectory, step: int, made_with: RunConfig, **changes: Any) -> RunCheckpoint:
    pending = PendingCheckpoint(run.checkpoints, step=step)
    pending.begin()
    return pending.complete(make_manifest(pending.path, made_with, step=step, **changes))


def go_on(path: Path, *overrides: str, allowed: tuple[str, ...] = (), config: Path | None = None) -> Resumed:
    return resume(path, Arguments(config=config, overrides=overrides, allowed=allowed))[1]


def refusal(path: Path, *overrides: str, allowed: tuple[str, ...] = (), config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        go_on(path, *overrides, allowed=allowed, config=config)
    return str(caught.value)


def write_driver(run: RunDirectory, mark: ProcessMark) -> None:
    facts = json.loads(run.state_path.read_text())
    run.state_path.write_text(json.dumps(facts | {"status": "running", "driver": mark.as_json()}))
