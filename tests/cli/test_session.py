"""The frame of a run around work that a test gives it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megarl.cli.session import describe_kept_weights
from megarl.telemetry.heartbeat import read_heartbeat
from megarl.telemetry.process_mark import start_ticks
from megarl.telemetry.run_directory import RunDirectory
from tests.telemetry.runs import make_config

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from megarl.cli.session import run_session
from megarl.runtime.failures import WorkerFailed
from megarl.telemetry.columns import SFT_COLUMNS
from tests.telemetry.runs import make_config

parent, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "no drawing":
    sys.modules["vl_convert"] = None

async def work(session):
    with session.directory.metrics_path.open("a") as file:
        file.write(json.dumps({"step": 1, "reward/mean": 0.5}) + chr(10))
    if mode == "orphan":
        print("pid", subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
    if mode == "fails":
        raise RuntimeError("it broke")
    if mode == "a worker fails":
        async with session.heart.explaining():
            with session.reporter.spans.measure("step", step=1):
                raise WorkerFailed("policy rank 3 died")
    if mode == "kept":
        (session.directory.exports / "step-000001").mkdir()

source = parent / "run.toml"
source.write_text("")
kinds = {"wandb_project": "x"} if mode == "no wandb" else {}
if mode == "no wandb":
    sys.modules["wandb"] = None
sections = {"objective": {"clip": {"high": 1.28}}} if mode == "suspicious" else {}
config = make_config(parent, logging={"directory": str(parent / "runs"), **kinds}, **sections)
link = parent / "job" / "run" if mode == "linked" else None
sys.exit(run_session(config, work, sources=[source], verb="train", steps=1, columns=SFT_COLUMNS, link=link))
"""


def run_frame(parent: Path, mode: str) -> tuple[int, str, RunDirectory]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(parent), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(parent)},
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout, RunDirectory.open(parent / "runs" / "latest")


def test_figures_that_cannot_be_drawn_cost_nothing(tmp_path: Path) -> None:
    code, shown, run = run_frame(tmp_path, "no drawing")
    assert code == 0
    assert run.read_state().status == "finished"
    assert run.report_path.is_file()
    assert "missing  the picture of reward" in shown
    assert f"try again: megarl report {run.path}" in shown


def test_a_link_leads_to_the_run_and_the_run_back(tmp_path: Path) -> None:
    code, _, run = run_frame(tmp_path, "linked")
    assert code == 0
    assert (tmp_path / "job" / "run").resolve() == run.path
    assert (run.path / "job").resolve() == tmp_path / "job"


def test_a_process_that_stays_is_ended_with_the_run(tmp_path: Path) -> None:
    code, shown, _ = run_frame(tmp_path, "orphan")
    assert code == 0
    (pid,) = [line.split()[1] for line in shown.splitlines() if line.startswith("pid ")]
    assert start_ticks(int(pid)) is None


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("fails", "weights  none were kept (train.export_every is 0: they are written after the last step only)"),
        ("kept", "only the last ones are kept: train.export_every is 0"),
    ],
)
def test_a_run_says_which_weights_it_keeps(mode: str, said: str, tmp_path: Path) -> None:
    code, shown, run = run_frame(tmp_path, mode)
    assert code == (1 if mode == "fails" else 0)
    assert run.read_state().message == ("it broke" if mode == "fails" else None)
    note = describe_kept_weights(make_config(tmp_path), "train")
    assert note is not None
    assert note in shown[: shown.index(said)]  # at its start, and at its end


def test_a_run_that_exports_needs_no_warning(tmp_path: Path) -> None:
    config = make_config(tmp_path, train={"export_every": 5})
    assert describe_kept_weights(config, "train") is None
    assert describe_kept_weights(make_config(tmp_path), "sft") is None  # it has no more to keep


def test_a_missing_package_is_a_configuration_error(tmp_path: Path) -> None:
    code, shown, run = run_frame(tmp_path, "no wandb")
    assert code == 2
    assert run.read_state().status == "failed"
    assert "wandb is not installed: pip install" in shown


def test_a_warning_is_given_once(tmp_path: Path) -> None:
    code, shown, run = run_frame(tmp_path, "suspicious")
    assert code == 0
    warning = "warning: objective.clip.high 1.28"
    assert shown.count(warning) == 1
    assert run.log_path("controller", 0).read_text().count(warning) == 1


def test_the_end_names_the_file_of_phases_and_stacks(tmp_path: Path) -> None:
    code, shown, run = run_frame(tmp_path, "a worker fails")
    assert code == 1
    (file,) = run.logs.glob("stacks-*.txt")
    state = run.read_state()
    assert state.message is not None
    first, phases, stacks = state.message.splitlines()
    assert first == "policy rank 3 died"
    assert phases.startswith("Phases of all processes: controller 0: ")
    assert stacks == f"Their stacks: {file}"
    assert f"failed: {state.message}" in shown
    assert file.read_text().startswith("policy rank 3 died\n")
    # And the last heartbeat stays.
    heartbeat = read_heartbeat(run.heartbeat_path)
    assert heartbeat is not None
    assert (heartbeat.steps, [beat.role for beat in heartbeat.processes]) == (1, ["controller"])
