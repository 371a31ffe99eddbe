"""`megarl ablate --slurm`, commands in the place of Slurm's note what they are asked (tests/cluster: real)."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from megarl.ablation.directory import AblationDirectory
from megarl.cli.ablation_jobs import find_jobs
from megarl.cli.main import app
from megarl.config.base import ConfigError
from megarl.slurm.job_directory import link_run
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.e2e.configuration import write_tiny_config
from tests.telemetry.runs import make_config

TWO = """
name = "two"
base = "tiny.toml"
seeds = [0]
warm_start = true
retries = 3
[overrides]
parallel = { tensor = 1, world_size = 1 }
[grid]
objective.clip.high = [0.28, inf]
"""
# Numbers from 101 on; the second submission is refused where `refuse` is there.
SBATCH = """#!/bin/sh
echo "sbatch $*" >> "$ASKED"
case "$1" in --test-only) echo "sbatch: would begin at noon" >&2; exit 0 ;; esac
number=$((100 + $(grep -c parsable "$ASKED")))
if [ -e "$ASKED.refuse" ] && [ $number -gt 101 ]; then echo "sbatch: error: no more jobs" >&2; exit 1; fi
echo $number
"""
SQUEUE = """#!/bin/sh
cat "$ASKED.queue" 2>/dev/null
exit 0
"""
SCANCEL = """#!/bin/sh
echo "scancel $*" >> "$ASKED"
"""


class Slurm:
    """What was asked of it, and what it will say."""

    def __init__(self, folder: Path) -> None:
        self.asked = folder / "asked"

    def submitted(self) -> list[str]:
        """Arguments of what was handed in."""
        lines = self.asked.read_text().splitlines()
        return [line.removeprefix("sbatch --parsable ") for line in lines if "--parsable" in line]

    def queue(self, *jobs: str) -> None:
        """These are in it."""
        lines = "".join(f"{job}|PENDING|0:00|1:00|||N/A\n" for job in jobs)
        Path(f"{self.asked}.queue").write_text(lines)


@pytest.fixture
def slurm(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.chdir(tmp_path)
    write_tiny_config(tmp_path, tiny_model_dir)
    (tmp_path / "two.toml").write_text(TWO)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setattr("megarl.cli.ablate_slurm.find_hidden_paths", lambda _: ())
    return Slurm(tmp_path)


def ablate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


def submit(*arguments: str) -> Result:
    return ablate("two.toml", "--slurm", "--gpus-per-node", "0", *arguments)


def made() -> AblationDirectory:
    (path,) = Path("runs").glob("two-ablation-*")
    return AblationDirectory.open(path)


def finish(directory: AblationDirectory, link: Path, name: str) -> None:
    """What a task of the job leaves."""
    run = RunDirectory.create(make_config(directory.runs, name=name), source=None, verb="train")
    run.write_state(RunState(status="finished"))
    link_run(run.path, link)


def test_the_warm_start_is_handed_in_first_and_the_array_waits_for_it(slurm: Slurm) -> None:
    result = submit()
    assert result.exit_code == 0, result.output
    directory = made()
    warm, array = slurm.submitted()
    assert warm == f"{directory.path}/slurm/warm/job.sbatch"
    assert array == f"--dependency=afterok:101 --kill-on-invalid-dep=yes {directory.path}/slurm/job.sbatch"
    assert "submitted  job 102: 2 runs" in result.output
    jobs = find_jobs(directory)
    assert jobs is not None
    assert jobs[1] is not None
    assert (jobs[0].read()["job"], jobs[1].read()["job"]) == ("102", "101")
    assert jobs[0].read()["cells"] == [["high0.28-seed0"], ["highinf-seed0"]]
    script = (directory.path / "slurm" / "warm" / "job.sbatch").read_text()
    assert 'exec megarl sft "$@"' in script
    assert 'record end --asked "$asked" --restarts 3' in script


def test_what_the_tasks_make_is_the_ablations(slurm: Slurm) -> None:
    submit()
    directory = made()
    assert {facts.status for facts in directory.standings().values()} == {"waiting"}
    finish(directory, directory.path / "slurm" / "cell-1" / "run", "highinf-seed0")
    first, second = directory.plan().cells
    assert directory.run_of(first) is None
    run = directory.run_of(second)
    assert run is not None
    assert run.parent == directory.runs
    assert [facts.status for facts in directory.standings().values()] == ["waiting", "finished"]
    finish(directory, directory.path / "slurm" / "warm" / "run", "warm")
    assert (directory.warm / "state.json").is_file()


def test_going_on_starts_nothing_here(slurm: Slurm) -> None:
    submit()
    directory = made()
    slurm.queue("101", "102_0", "102_1")
    result = ablate("--resume", str(directory.path))
    assert result.exit_code == 1
    assert "job 102 is in the queue: what is there so far" in result.output
    assert "2 of 2 runs are not finished" in result.output
    assert len(slurm.submitted()) == 2


def test_what_is_not_finished_is_handed_in_once_more(slurm: Slurm) -> None:
    submit()
    directory = made()
    slurm.queue("102_0")
    again = ("--resume", str(directory.path), "--slurm")
    refused = ablate(*again)
    assert isinstance(refused.exception, ConfigError)
    assert "job 102 is in the queue" in str(refused.exception)
    slurm.queue()
    assert ablate(*again).exit_code == 0  # with the warm start, whose weights are not there
    assert len(slurm.submitted()) == 4
    assert "--dependency=afterok:103" in slurm.submitted()[3]
    finish(directory, directory.path / "slurm" / "warm" / "run", "warm")
    assert ablate(*again).exit_code == 0  # it was cut short before it had exported them
    assert slurm.submitted()[4] == f"{directory.path}/slurm/warm/job.sbatch"
    (directory.warm / "hf" / "step-000006").mkdir()
    assert ablate(*again).exit_code == 0
    assert slurm.submitted()[6:] == [f"{directory.path}/slurm/job.sbatch"]
    jobs = find_jobs(directory)
    assert jobs is not None
    assert jobs[0].read()["job"] == "107"


def test_an_array_that_is_not_taken_leaves_nothing_behind(slurm: Slurm) -> None:
    Path(f"{slurm.asked}.refuse").touch()
    result = submit()
    assert isinstance(result.exception, ConfigError)
    assert "no more jobs" in str(result.exception)
    assert "scancel 101" in slurm.asked.read_text()
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "limit"), [((), ""), (("at_once=1",), "%1"), (("at_once=1", "--at-once", "2"), "%2")]
)
def test_the_limit_of_the_array_is_what_was_asked_for(slurm: Slurm, arguments: tuple[str, ...], limit: str) -> None:
    result = submit("--dry-run", *arguments)
    assert f"\n#SBATCH --array=0-1{limit}\n" in result.output
    assert not Path("runs").exists()


def test_an_ablation_of_this_machine_is_not_handed_in(slurm: Slurm) -> None:
    submit()
    directory = made()
    for job in (directory.path / "slurm").rglob("job.json"):
        job.unlink()
    result = ablate("--resume", str(directory.path), "--slurm")
    assert "it was not submitted; leave out --slurm" in str(result.exception)


def test_settings_that_want_other_nodes_are_refused(slurm: Slurm) -> None:
    grid = "grid.cluster.gpus_per_node=[4, 8]"
    result = ablate("two.toml", grid, "--slurm")
    assert "cluster.gpus_per_node: the runs of an array have the nodes of one job, and settings have [4, 8]" in str(
        result.exception
    )


def test_what_was_submitted_takes_nothing_new_when_it_goes_on(slurm: Slurm) -> None:
    submit()
    for flags in ((), ("--slurm",)):
        result = ablate("--resume", str(made().path), "at_once=1", *flags)
        assert "it was submitted, and its scripts stay as they are" in str(result.exception)
    assert len(slurm.submitted()) == 2


def test_a_copy_is_not_handed_in(slurm: Slurm, tmp_path: Path) -> None:
    """Its scripts would write into the first one."""
    submit()
    copy = shutil.copytree(made().path, tmp_path / "copy", symlinks=True)
    result = ablate("--resume", str(copy), "--slurm")
    assert f"it was made as {made().path}" in str(result.exception)
    assert len(slurm.submitted()) == 2
