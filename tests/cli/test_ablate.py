"""`megarl ablate` from its command line to its directory; the runs are stand-ins that make no steps."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.driver import Driver, Task
from megarl.ablation.keepers import Keeper, start_keeper
from megarl.ablation.launch import read_launch
from megarl.ablation.processes import RunProcess, Slot, start_process
from megarl.cli.main import app
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from tests.e2e.configuration import write_tiny_config
from tests.slurm.golden import FOLDER, OF_AN_ABLATION, print_array

ROOT = Path(__file__).parents[2]
TWO = """
name = "two"
base = "tiny.toml"
seeds = [0, 1]
[overrides]
parallel = { tensor = 1, world_size = 1 }
[grid]
objective.clip.high = [0.28, inf]
"""
CELLS = ["high0.28-seed0", "highinf-seed0", "high0.28-seed1", "highinf-seed1"]


class StandIns:
    """In the place of the runs' processes: what each was to be started with, and how the stand-in behaves."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "journal"
        self.behaviour: dict[str, dict[str, Any]] = {}
        self.commands: dict[str, Sequence[str]] = {}
        self.directories: set[Path] = set()
        self.kept: list[Sequence[str]] = []
        """Of each keeper, what follows its directory on its command line."""

    def start(
        self,
        command: Sequence[str],
        *,
        log: Path,
        working_directory: Path,
        environment: Mapping[str, str],
        slot: Slot,
    ) -> RunProcess:
        assert command[:3] == [sys.executable, "-m", "megarl.cli.main"]
        assert command[-2] == "--run"
        link = Path(command[-1])
        self.commands[link.name] = command
        self.directories.add(working_directory)
        behaviour = {"steps": 2} | self.behaviour.get(link.name, {})
        stand_in = [sys.executable, "-m", "tests.ablation.stand_in", str(link), str(self.journal)]
        return start_process(
            [*stand_in, json.dumps(behaviour)],
            log=log,
            working_directory=working_directory,
            environment={**environment, "PYTHONPATH": str(ROOT)},
            slot=slot,
        )

    def keep(self, command: Sequence[str], *, directory: Path, environment: Mapping[str, str], **given: Any) -> Keeper:
        assert command[:4] == [sys.executable, "-m", "megarl.cli.keeper", str(directory)]
        self.kept.append(command[4:])
        stand_in = [sys.executable, "-m", "tests.ablation.keeper_stand_in", str(directory), str(self.journal), "{}"]
        environment = {**environment, "PYTHONPATH": str(ROOT)}
        return start_keeper(stand_in, directory=directory, environment=environment, **given)

    def begun(self) -> list[str]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.split()[1] for line in lines if line.startswith("begin")]


@pytest.fixture
def stand_ins(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """In a folder with tiny.toml and two.toml, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    write_tiny_config(tmp_path, tiny_model_dir)
    (tmp_path / "two.toml").write_text(TWO)
    found = StandIns(tmp_path)
    monkeypatch.setattr("megarl.cli.ablate.start_process", found.start)
    monkeypatch.setattr("megarl.cli.ablate_keeping.start_keeper", found.keep)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def ablate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments], catch_exceptions=True)


def made() -> AblationDirectory:
    (path,) = Path("runs").glob("two-ablation-*")
    return AblationDirectory.open(path)


def problems_of(result: Result) -> tuple[str, ...]:
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception.problems


def test_one_command_makes_all_runs(stand_ins: StandIns, tmp_path: Path) -> None:
    result = ablate("two.toml", "train.steps=2")
    assert result.exit_code == 0, result.output
    directory = made()
    assert stand_ins.begun() == CELLS
    assert {name: facts.status for name, facts in directory.standings().items()} == dict.fromkeys(CELLS, "finished")
    assert (directory.path / "ablation.source").read_text() == TWO
    assert stand_ins.directories == {tmp_path}
    for name in CELLS:
        assert f"{name}: finished after step 2 of 2" in result.output
    assert "4 runs: 4 finished" in result.output


def test_a_run_is_started_with_what_was_checked(stand_ins: StandIns, tmp_path: Path) -> None:
    """Even where a file is changed while the ablation runs."""
    (tmp_path / "wide.toml").write_text("[objective]\nclip = { low = 1.0 }\n")
    assert ablate("two.toml", "wide.toml", "train.steps=2").exit_code == 0
    (tmp_path / "wide.toml").write_text("broken")
    (tmp_path / "tiny.toml").write_text("broken")
    directory, (_, _, _, verb, base, *arguments) = made(), stand_ins.commands["highinf-seed1"]
    assert verb == "train"
    config = load_config(Path(base), arguments[:-2])
    assert (config.objective.clip.low, config.objective.clip.high) == (1.0, float("inf"))
    assert (config.train.seed, config.train.steps, config.name) == (1, 2, "highinf-seed1")
    assert config.logging.directory == str(directory.runs)


def test_runs_of_one_shape_have_the_same_engines(stand_ins: StandIns) -> None:
    """Which bounds and seeds do not change, and a temperature does."""
    result = ablate("two.toml", "train.steps=2")
    assert result.exit_code == 0, result.output
    lines = stand_ins.journal.read_text().splitlines()
    with_keepers = [line.split()[:2] for line in lines if line.startswith("with-")]
    assert [name for _, name in with_keepers] == CELLS
    assert len({keeper for keeper, _ in with_keepers}) == len(stand_ins.kept) == 1
    assert lines[-1].startswith("kept")
    (base, *arguments), directory = stand_ins.kept[0], made()
    assert load_config(Path(base), arguments).name == CELLS[0]
    assert "engines  of one shape: 4 runs that follow each other in one have the same (keep_engines)" in result.output
    assert {path.name for path in directory.keepers.iterdir()} == {read_launch(directory).cells[CELLS[0]].shape}


@pytest.mark.parametrize(
    ("arguments", "keepers"),
    [
        (["keep_engines=false"], 0),
        (["grid={rollout={temperature=[0.7,1.0]}}"], 4),  # two each, in turns
        (["grid={rollout={temperature=[0.7,1.0]}}", "seeds=[0]"], 0),  # nobody else would have them
    ],
)
def test_engines_are_not_kept_for_others(arguments: list[str], keepers: int, stand_ins: StandIns) -> None:
    result = ablate("two.toml", "train.steps=2", *arguments)
    assert result.exit_code == 0, result.output
    assert len(stand_ins.kept) == keepers
    assert ("engines  of 2 shapes: 4 runs" in result.output) == bool(keepers)


def test_a_ray_that_is_joined_keeps_no_engines(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = ablate("two.toml", "train.steps=2")
    assert result.exit_code == 0, result.output
    assert stand_ins.kept == []
    assert "engines  of" not in result.output


def test_a_dry_run_prints_the_runs_and_starts_nothing(stand_ins: StandIns) -> None:
    result = ablate("two.toml", 'control="highinf"', "--dry-run")
    assert result.exit_code == 0, result.output
    assert "two: 4 runs of tiny.toml" in result.output
    lines = [re.split(r" {2,}", line.strip()) for line in result.output.splitlines()]
    assert ["setting", "objective.clip.high", "fragments", "seeds"] in lines
    assert ["high0.28", "0.28", "0 1"] in lines
    assert ["highinf (control)", "inf", "0 1"] in lines
    assert not Path("runs").exists()
    assert stand_ins.begun() == []


def test_a_failure_is_told_and_stops_no_other(stand_ins: StandIns) -> None:
    stand_ins.behaviour["highinf-seed0"] = {"fails": 9}
    result = ablate("two.toml", "retries=1")
    assert result.exit_code == 1
    assert "highinf-seed0: failed: it broke" in result.output
    assert "1 of 4 runs are not finished; megarl ablate --resume runs/two-ablation-" in result.output
    standings = made().standings()
    assert (standings["highinf-seed0"].status, standings["highinf-seed0"].attempts) == ("failed", 2)
    assert [facts.status for facts in standings.values()].count("finished") == 3
    assert stand_ins.begun() == [*CELLS, "highinf-seed0"]


def test_going_on_tries_what_has_failed_again_and_leaves_the_rest(stand_ins: StandIns) -> None:
    stand_ins.behaviour["highinf-seed0"] = {"fails": 1}
    assert ablate("two.toml", "retries=0").exit_code == 1
    directory = made()
    result = ablate("--resume", str(directory.path))
    assert result.exit_code == 0, result.output
    assert "3 of 4 runs are finished and stay as they are" in result.output
    assert "highinf-seed0 (failed): begins again: it has no complete checkpoint" in result.output
    assert stand_ins.begun() == [*CELLS, "highinf-seed0"]
    assert directory.standings()["highinf-seed0"].attempts == 2


def test_ctrl_c_ends_in_order_and_the_same_directory_goes_on(stand_ins: StandIns) -> None:
    stand_ins.behaviour["highinf-seed0"] = {"steps": 60, "step_s": 0.1}

    def press() -> None:
        deadline = time.monotonic() + 30
        while stand_ins.begun() != CELLS[:2] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    result = ablate("two.toml")
    thread.join()
    assert result.exit_code == 130
    assert "SIGINT: nothing more is started; waiting for highinf-seed0 to stop" in result.output
    assert "interrupted; megarl ablate --resume runs/two-ablation-" in result.output
    directory = made()
    assert [facts.status for facts in directory.standings().values()] == ["finished", "stopped", "waiting", "waiting"]
    stand_ins.behaviour.clear()
    assert ablate("--resume", str(directory.path)).exit_code == 0
    assert stand_ins.begun() == [*CELLS[:2], "highinf-seed0", *CELLS[2:]]


def test_one_driver_at_a_time(stand_ins: StandIns) -> None:
    assert ablate("two.toml").exit_code == 0
    directory = made()
    # This process has run it, and holds it until it ends.
    command = [sys.executable, "-m", "megarl.cli.main", "ablate", "--resume", str(directory.path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 1
    assert f"is being run: it is driven by process {os.getpid()}" in done.stderr


def test_a_shared_warm_start_comes_first_and_all_begin_with_its_weights(stand_ins: StandIns) -> None:
    assert ablate("two.toml", "warm_start=true").exit_code == 0
    directory = made()
    assert stand_ins.begun() == ["warm", *CELLS]
    _, _, _, verb, base, *arguments = stand_ins.commands["warm"]
    assert verb == "sft"
    assert load_config(Path(base), arguments[:-2]).sft is not None
    _, _, _, _, base, *arguments = stand_ins.commands[CELLS[0]]
    assert load_config(Path(base), arguments[:-2]).model.path == str(directory.path / "warm" / "hf" / "step-000006")


def test_without_a_warm_start_no_run_begins(stand_ins: StandIns) -> None:
    stand_ins.behaviour["warm"] = {"fails": 9}
    result = ablate("two.toml", "warm_start=true", "retries=1")
    assert result.exit_code == 1
    assert "the warm start failed: it broke" in result.output
    assert stand_ins.begun() == ["warm", "warm"]
    assert {facts.status for facts in made().standings().values()} == {"skipped"}
    stand_ins.behaviour.clear()
    assert ablate("--resume", str(made().path)).exit_code == 0
    assert stand_ins.begun() == ["warm", "warm", "warm", *CELLS]


def test_files_are_checked_before_the_first_run(stand_ins: StandIns) -> None:
    grid = "grid={model = {path = ['models/absent', 'models/gone']}}"
    problems = problems_of(ablate("two.toml", grid, "control=path-gone"))
    assert any(problem.startswith('path-absent: model.path "models/absent"') for problem in problems)
    assert any(problem.startswith('path-gone: model.path "models/gone"') for problem in problems)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected an ABLATION file or --resume DIR"),
        (["at_once=2"], "expected an ABLATION file or --resume DIR"),
        (["two.toml", "--time", "10"], "options of the job belong to --slurm"),
        (["--resume", "runs/none"], "is no ablation's directory: it has no ablation.json"),
        (["--resume", "runs/none", "train.steps=3"], "expected at_once=N or retries=N"),
        (["--resume", "runs/none", "at_once=0"], 'at_once: expected an integer >= 1, found "0"'),
        (["--resume", "runs/none", "--dry-run"], "--resume DIR: nothing is tried"),
        (["--resume", "runs/none", "--slurm", "--time", "10"], "the scripts are those of before and take no options"),
        (["absent.toml"], "absent.toml: no such file"),
        (["tiny.toml"], "expected an ablation"),
    ],
)
def test_what_cannot_work_is_refused(stand_ins: StandIns, arguments: list[str], said: str) -> None:
    assert said in str(problems_of(ablate(*arguments)))


def test_what_was_chosen_when_it_was_made_holds_when_it_goes_on(stand_ins: StandIns) -> None:
    stand_ins.behaviour["high0.28-seed0"] = {"fails": 9}
    assert ablate("two.toml", "retries=2").exit_code == 1
    directory = made()
    assert read_launch(directory).retries == 2
    stand_ins.journal.unlink()
    assert ablate("--resume", str(directory.path)).exit_code == 1
    assert stand_ins.begun() == ["high0.28-seed0"] * 3
    assert ablate("--resume", str(directory.path), "retries=0").exit_code == 1
    assert stand_ins.begun() == ["high0.28-seed0"] * 4


def test_a_dry_run_with_slurm_prints_the_array_as_kept(tmp_path: Path, tiny_model_dir: Path) -> None:
    kept = FOLDER / f"{OF_AN_ABLATION}.sbatch"
    assert print_array(tmp_path, tiny_model_dir) == kept.read_text(encoding="utf-8")
    assert not (tmp_path / "runs").exists()


def test_one_that_was_moved_is_read_and_not_gone_on_with(stand_ins: StandIns, tmp_path: Path) -> None:
    assert ablate("two.toml").exit_code == 0
    before = made().path
    after = before.rename(tmp_path / "elsewhere")
    result = ablate("--resume", str(after))
    assert f"it was made as {before}" in str(result.exception)
    assert {facts.status for facts in AblationDirectory.open(after).standings().values()} == {"finished"}


def test_status_tells_every_run(stand_ins: StandIns) -> None:
    stand_ins.behaviour["highinf-seed1"] = {"fails": 9, "silent": True}
    assert ablate("two.toml", "retries=0").exit_code == 1
    told = CliRunner().invoke(app, ["status", str(made().path)])
    assert told.exit_code == 1
    assert "cell       highinf-seed1: failed: its process ended with exit code 1" in told.output
    assert "cell       high0.28-seed0: finished" in told.output


def test_a_signal_as_the_warm_start_ends_begins_no_run(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it does not stop any more."""
    judge = Driver._judge

    def interrupted(self: Driver, task: Task, code: int) -> None:
        judge(self, task, code)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Driver, "_judge", interrupted)
    result = ablate("two.toml", "warm_start=true")
    assert result.exit_code == 130, result.output
    assert stand_ins.begun() == ["warm"]


def test_a_signal_as_the_last_run_ends_leaves_nothing_to_go_on_with(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Driver._judge

    def interrupted(self: Driver, task: Task, code: int) -> None:
        judge(self, task, code)
        if task.name == CELLS[-1]:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Driver, "_judge", interrupted)
    result = ablate("two.toml")
    assert result.exit_code == 0, result.output
    assert made().summary_path.is_file()
