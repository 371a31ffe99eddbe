"""Ablations of real runs: all of them by one command, through an interruption, beside each other, beside a broken one.

Whatever way a run was made, its rows are those of the one that was left alone.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.config.loader import load_config
from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RUN_TIMEOUT_S = 400
GRID = """
name = "clip"
base = "tiny.toml"
seeds = [0, 1]
control = "low0.2-high0.28"
[overrides]
parallel = { tensor = 1, world_size = 1 }
train.steps = 8
checkpoint.every_steps = 1
[grid]
objective.clip.low = [0.2, 1.0]
objective.clip.high = [0.28, inf]
"""
FEW = ("seeds=[1]", "grid.objective.clip.low=[0.2]")
"""The last two of the first column alone."""
BROKEN = "def refuse(prompt, response):\n    raise RuntimeError('no verdict today')\n"


def prepare(folder: Path, model: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_tiny_config(folder, model)
    (folder / "clip.toml").write_text(GRID)
    return folder


def only_ablation(folder: Path) -> AblationDirectory:
    (path,) = (folder / "runs").glob("clip-ablation-*")
    return AblationDirectory.open(path)


def run_of(directory: AblationDirectory, name: str) -> RunDirectory:
    (cell,) = (cell for cell in directory.plan().cells if cell.name == name)
    path = directory.run_of(cell)
    assert path is not None, directory.log_of(cell).read_text() if directory.log_of(cell).exists() else name
    return RunDirectory.open(path)


def logs_of(directory: AblationDirectory) -> str:
    return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(directory.path.rglob("*.log")))


def check_all_finished(directory: AblationDirectory) -> None:
    assert {facts.status for facts in directory.standings().values()} == {"finished"}, logs_of(directory)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> AblationDirectory:
    """Two settings of each of two fields, two seeds, one after the other."""
    cwd = prepare(tmp_path_factory.mktemp("alone"), tiny_model_dir)
    with Megarl("ablate", "clip.toml", cwd=cwd) as command:
        assert command.wait(8 * RUN_TIMEOUT_S) == 0, command.text
        assert command.leftovers() == []
    return only_ablation(cwd)


def test_one_command_makes_eight_runs(alone: AblationDirectory) -> None:
    check_all_finished(alone)
    cells = alone.plan().cells
    assert len(cells) == 8
    rows = {cell.name: metrics_of(run_of(alone, cell.name)) for cell in cells}
    assert all([row["step"] for row in found if "reward/mean" in row] == list(range(1, 9)) for found in rows.values())
    # They differ: by the seed from the first step on, by the bounds after it has made more than one update.
    assert len({json.dumps(found) for found in rows.values()}) > 2
    config = load_config(run_of(alone, "low1-highinf-seed1").config_path)
    assert (config.objective.clip.low, config.objective.clip.high, config.train.seed) == (1.0, float("inf"), 1)


def test_an_interrupted_ablation_goes_on_as_if_it_had_not_been(
    alone: AblationDirectory, tmp_path: Path, tiny_model_dir: Path
) -> None:
    cwd = prepare(tmp_path, tiny_model_dir)
    name = "low0.2-high0.28-seed1"

    def has_saved() -> bool:
        return any((cwd / "runs").glob(f"clip-*/cells/runs/{name}-*/checkpoints/step-000001/*.json"))

    with Megarl("ablate", "clip.toml", *FEW, cwd=cwd) as command:
        command.wait_for(has_saved, RUN_TIMEOUT_S)
        command.send_signal(signal.SIGINT)
        assert command.wait(120) == 130, command.text
        assert command.leftovers() == []
        assert f"SIGINT: nothing more is started; waiting for {name} to stop" in command.text
    directory = only_ablation(cwd)
    assert [facts.status for facts in directory.standings().values()] == ["stopped", "waiting"]
    with Megarl("ablate", "--resume", directory.path, cwd=cwd) as command:
        assert command.wait(2 * RUN_TIMEOUT_S) == 0, command.text
        assert f"{name} (stopped): goes on after step" in command.text
    check_equal(directory, alone)


def test_runs_beside_each_other_are_those_that_follow_each_other(
    alone: AblationDirectory, tmp_path: Path, tiny_model_dir: Path, several_cores: None
) -> None:
    cwd = prepare(tmp_path, tiny_model_dir)
    with Megarl("ablate", "clip.toml", *FEW, "at_once=2", cwd=cwd) as command:
        assert command.wait(2 * RUN_TIMEOUT_S) == 0, command.text
        assert command.leftovers() == []
        text = command.text
    assert "low0.2-high0.28-seed1: begins\nlow0.2-highinf-seed1: begins\n" in text
    directory = only_ablation(cwd)
    check_equal(directory, alone)
    assert "removed what a killed run left" not in logs_of(directory)


def test_a_broken_setting_is_reported_and_the_others_finish(
    alone: AblationDirectory, tmp_path: Path, tiny_model_dir: Path
) -> None:
    cwd = prepare(tmp_path, tiny_model_dir)
    (cwd / "broken_verifier.py").write_text(BROKEN)
    verifier = "{kind = 'function', path = 'broken_verifier:refuse'}"
    broken = f"{{name = 'broken', overrides = {{reward = {{verifier = {verifier}}}}}}}"
    grid = "grid={objective = {clip = {low = [0.2]}}}"
    arguments = ("seeds=[1]", grid, f"settings=[{broken}, {{name = 'sound'}}]", "control=sound-low0.2")
    with Megarl("ablate", "clip.toml", *arguments, "objective.clip.high=0.28", cwd=cwd) as command:
        assert command.wait(2 * RUN_TIMEOUT_S) == 1, command.text
        text = command.text
    directory = only_ablation(cwd)
    facts = directory.standings()
    assert facts["broken-low0.2-seed1"].status == "failed"
    assert "no verdict today" in (facts["broken-low0.2-seed1"].message or "")
    assert "broken-low0.2-seed1: failed" in text
    assert "no verdict today" in text
    assert facts["sound-low0.2-seed1"].status == "finished"
    assert metrics_of(run_of(directory, "sound-low0.2-seed1")) == metrics_of(run_of(alone, "low0.2-high0.28-seed1"))


def check_equal(directory: AblationDirectory, alone: AblationDirectory) -> None:
    """Every run of it is the one of its name that was left alone."""
    check_all_finished(directory)
    for cell in directory.plan().cells:
        assert metrics_of(run_of(directory, cell.name)) == metrics_of(run_of(alone, cell.name)), cell.name


@pytest.fixture
def several_cores() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: runs are not made beside each other")
