"""What an ablation's runs take, from real run directories and shapes of models."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from megarl.ablation.cells import load_ablation
from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, Setting
from megarl.cli.ablation_costs import check_costs, estimate_costs, pace_of_run
from megarl.cli.ablation_tables import estimate_lines
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.telemetry.run_directory import RunDirectory, RunState

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "ablations" / "made-for-this-test.toml"
PARAMETERS = 451_712
"""Of the quickstart's model: 448 x 128 embedded and tied; two layers of 197,120 (attention 49,408 with its biases, MLP
3 x 128 x 384, two norms); the last norm."""


def make_config(directory: Path, *overrides: str) -> RunConfig:
    where = f"logging.directory={directory}"
    return load_config(ROOT / "configs" / "quickstart.toml", [where, "model.path=models/Quickstart", *overrides])


def make_run(config: RunConfig, *, step_s: float, steps: int = 5, status: str = "finished") -> RunDirectory:
    run = RunDirectory.create(config, source=None, verb="train")
    started = 1_795_910_400.0
    versions = run.read_versions() | {"started": "2026-11-29T00:00:00+00:00"}
    run.versions_path.write_text(json.dumps(versions))
    rows = [
        {"step": at, "timestamp": started + 30 + at * step_s, "timing_s/step": step_s} for at in range(1, steps + 1)
    ]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_state(RunState(status=status, step=steps))  # type: ignore[arg-type]
    return run


def test_a_pace_from_a_run_directory(tmp_path: Path) -> None:
    run = make_run(make_config(tmp_path), step_s=4.0)
    pace = pace_of_run(run.path)
    assert pace is not None
    assert (pace.start_s, pace.step_s, pace.source) == (30.0, 4.0, run.path.name)
    run.versions_path.write_text("{}")
    assert pace_of_run(run.path) is None


def test_room_and_time_from_an_earlier_run(tmp_path: Path) -> None:
    make_run(make_config(tmp_path, "name=other", "train.samples_per_prompt=8"), step_s=1.0)
    earlier = make_run(make_config(tmp_path, "name=same", "objective.clip.high=inf"), step_s=4.0)
    configs = {name: make_config(tmp_path, "checkpoint.every_steps=10") for name in ("a", "b")}
    found = estimate_costs(configs, file=FILE, output=tmp_path, at_once=1)
    assert found.room.exports == 2 * 4 * PARAMETERS
    # Of both runs two are left, and a third is there while it is written; float32 weights and two moments.
    assert (found.room.checkpoints, found.room.writing) == (2 * 2 * 12 * PARAMETERS, 12 * PARAMETERS)
    assert found.seconds == 2 * (30 + 30 * 4.0)
    assert [pace.source for pace in found.paces] == [earlier.path.name]
    lines = estimate_lines(found)
    assert lines[0] == "runs   2, 1 at a time"
    assert lines[1].startswith("disk   ")
    assert "exports 3.61 MB, checkpoints 27.1 MB, rollouts at most" in lines[1]
    assert lines[2] == f"time   5 minutes (4 s a step in {earlier.path.name})"


def test_time_is_unknown_without_an_earlier_run(tmp_path: Path) -> None:
    found = estimate_costs({"a": make_config(tmp_path)}, file=FILE, output=tmp_path / "not-there-yet", at_once=2)
    assert found.seconds is None
    assert estimate_lines(found)[2] == (
        "time   not known until a first run has made its first steps: no earlier run of the shape was found"
    )


def test_then_from_the_first_steps_of_the_ablation_itself(tmp_path: Path) -> None:
    """Cell a has made 5 of 30 steps; of b all are to come, and c is finished."""
    cells = tuple(Cell(index=at, name=name, setting=name, seed=0, run=f"cells/{name}") for at, name in enumerate("abc"))
    plan = AblationPlan(name="x", settings=tuple(Setting(name=name) for name in "abc"), cells=cells)
    (tmp_path / "x-ablation").mkdir()
    directory = AblationDirectory.create(tmp_path / "x-ablation", plan, source="")
    for name, steps in (("c", 30), ("a", 5)):
        run = make_run(make_config(directory.runs, f"name={name}"), step_s=2.0, steps=steps)
        (directory.path / "cells" / name).symlink_to(run.path)
    configs = {name: make_config(directory.runs, f"name={name}") for name in "abc"}
    found = estimate_costs(configs, file=FILE, output=tmp_path, at_once=1, directory=directory)
    assert (found.cells, found.seconds) == (2, 25 * 2.0 + 30 + 30 * 2.0)
    assert found.room.exports == 2 * 4 * PARAMETERS


def test_an_ablation_that_the_disk_has_no_room_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = load_ablation(ROOT / "configs" / "ablations" / "random-reward.toml", [f"output={tmp_path}"])
    has_free(monkeypatch, 10**15)
    file = io.StringIO()
    check_costs(Console(file=file, width=200), ablation, at_once=2)
    lines = file.getvalue().splitlines()
    assert lines[0] == "runs   36, 2 at a time"
    # Qwen2.5-1.5B: 1.544 G parameters, 2 bytes each in an export, 14 in a checkpoint: 36 are left, two more written.
    assert lines[1].startswith(
        "disk   1,481 GB at most (exports 111 GB, checkpoints 821 GB, rollouts at most 549 GB); 1,000,000 GB free"
    )
    has_free(monkeypatch, 10**11)
    with pytest.raises(
        ConfigError, match=r"random-reward.toml: exports and checkpoints of all 36 runs take 932 GB, but"
    ):
        check_costs(Console(file=file), ablation, at_once=2)


def has_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = type("Usage", (), {"free": count})
    monkeypatch.setattr("megarl.cli.ablation_costs.shutil.disk_usage", lambda path: usage)


def test_a_small_disk_is_said_in_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 10**6)
    found = estimate_costs({"a": make_config(tmp_path)}, file=FILE, output=tmp_path, at_once=1)
    assert found.problem is not None
    assert estimate_lines(found)[-1].startswith("!      exports and checkpoints of all 1 runs take 1.81 MB, but")


def test_a_model_without_a_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models/nowhere"):
        estimate_costs({"a": make_config(tmp_path, "model.path=models/nowhere")}, file=FILE, output=tmp_path, at_once=1)
