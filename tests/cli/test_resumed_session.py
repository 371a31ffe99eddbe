"""The frame of a run that goes on: in its own directory, after what was cut, said to whoever looks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import read_metrics
from tests.cli.resumable_runs import make_run
from tests.telemetry.runs import make_row, write_metrics

SCRIPT = """
import json, sys
from pathlib import Path
from megarl.cli.resume import Arguments, resume
from megarl.cli.session import run_session
from megarl.telemetry.columns import SFT_COLUMNS

async def work(session):
    reporter = session.reporter
    reporter._log(resumed.step + 1, {})
    reporter.report_update(resumed.step + 1, 0, {})
    if sys.argv[2] == "fails":
        raise RuntimeError("it broke again")

config, resumed = resume(Path(sys.argv[1]), Arguments.of(None, ["train.steps=40"], []))
sys.exit(run_session(config, work, sources=[], verb="train", steps=40, columns=SFT_COLUMNS, resumed=resumed))
"""


def go_on(run: RunDirectory, mode: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run.path), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(run.path.parent)},
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


@pytest.mark.parametrize(("mode", "code", "status"), [("works", 0, "finished"), ("fails", 1, "failed")])
def test_a_run_goes_on_in_its_directory(mode: str, code: int, status: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", 4)
    write_metrics(run.metrics_path, [make_row(step) for step in range(1, 7)])
    kept = b"".join(run.metrics_path.read_bytes().splitlines(keepends=True)[:4])
    done, shown = go_on(run, mode)
    assert done == code
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir() and not path.is_symlink()] == [
        run.path.name
    ]
    for line in (
        f"run  {run.path}",
        f"resume after step 4 of 40, from {run.checkpoints / 'step-000004'}",
        "change train.steps: 30 -> 40 (taken)",
        "cut    metrics.jsonl: 2 rows beyond step 4",
    ):
        assert f"\n{line}\n" in f"\n{shown}"
    assert run.metrics_path.read_bytes().startswith(kept)
    assert [row["step"] for row in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]
    assert [json.loads(line)["step"] for line in run.updates_path.read_text().splitlines()] == [5]
    state = run.read_state()
    assert (state.status, state.step) == (status, 4)
    assert state.message == ("it broke again" if mode == "fails" else None)
    assert run.report_path.is_file()


def test_a_run_that_starts_over_begins_with_empty_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    write_metrics(run.metrics_path, [make_row(1), make_row(2)])
    run.rollouts_path(1).write_text("rows")
    _, shown = go_on(run, "works")
    assert "the run starts over at step 1, in the same directory" in shown
    assert "cut    rollouts/step-000001.parquet" in shown
    assert [row["step"] for row in read_metrics(run.metrics_path)] == [1]
    assert list(run.rollouts.iterdir()) == []
    assert run.read_state() == RunState(status="finished")
