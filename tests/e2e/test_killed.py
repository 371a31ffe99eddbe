"""A run whose own process is killed: what it leaves is told truthfully, drawn, found, and removed by the next start."""

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.configuration import write_tiny_config
from tests.e2e.interrupting import ENDLESS, wait_for_steps
from tests.e2e.processes import MEGARL, Megarl


def ask(*arguments: str | Path, cwd: Path, run: Megarl) -> str:
    """What `megarl ...` prints beside the run, with its temporary directory."""
    done = subprocess.run(
        [str(MEGARL), *map(str, arguments)],
        cwd=cwd,
        env=run.environment | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout


SANDBOX = """
import os, subprocess

def score(prompt, response):
    if not os.path.exists("sandbox.pid"):
        sandbox = subprocess.Popen(["sleep", "100000"], start_new_session=True)
        with open("sandbox.pid", "w") as file:
            file.write(str(sandbox.pid))
    return float(len(response) % 2)
"""
"""A reward function that keeps a process for its code to run in, and leaves it behind."""


@pytest.mark.slow
def test_a_run_that_is_killed(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    (tmp_path / "sandbox.py").write_text(SANDBOX)
    verifier = 'reward.verifier={ kind = "function", path = "sandbox:score" }'
    with Megarl("train", config, ENDLESS, verifier, cwd=tmp_path) as run:
        wait_for_steps(run)
        directory = RunDirectory.open(run.directory.path)
        assert directory.standing() == ("running", None)
        sandbox = psutil.Process(int((tmp_path / "sandbox.pid").read_text()))
        run.send_signal(signal.SIGKILL)
        assert run.wait(10) == -9
        time.sleep(5)
        assert directory.standing()[0] == "killed"
        assert sandbox.is_running()
        (tmp_path / "runs" / "latest" / "metrics.jsonl").open("a").write('{"step": 9')
        shown = ask("report", "runs/latest", cwd=tmp_path, run=run)
        assert "state    killed after step " in shown
        assert "cut in half, as a killed run leaves it" in shown
        assert "killed" in directory.report_path.read_text()
        found = ask("doctor", cwd=tmp_path, run=run)
        assert f"process {sandbox.pid}: sleep 100000" in found
        assert "the next `megarl train` or `megarl sft`" in found.replace("\n", " ").replace("  ", "")
        shown = ask("sft", config, "sft.steps=1", cwd=tmp_path, run=run)
        assert f"removed what a killed run left ({directory.path}): process {sandbox.pid}" in shown
        assert not sandbox.is_running()
        assert run.leftovers() == []
