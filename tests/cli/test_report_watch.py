"""`megarl report --watch` as a command: what it serves, how it is told of, how it ends."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megarl.cli.report_watch import look_at, run_watch
from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import JsonlSink
from tests.telemetry.runs import make_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(make_config(tmp_path), source=None, verb="train")


def log_step(run: RunDirectory, step: int) -> None:
    sink = JsonlSink(run.metrics_path)
    sink.log(step, {"reward/mean": 0.5})
    sink.close()


@contextmanager
def watching(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "megarl.cli.main", "report", *arguments, "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_line(process: "subprocess.Popen[str]", pattern: str) -> "re.Match[str]":
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"no {pattern!r} in {told}")


def get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_served_as_it_goes_on_until_a_signal(run: RunDirectory, number: signal.Signals) -> None:
    log_step(run, 1)
    with watching(str(run.path)) as process:
        port = int(wait_for_line(process, r"http://127\.0\.0\.1:(\d+)/ ")[1])
        get(port)  # answered while the page is being built
        wait_for_line(process, "built in ")
        assert "Metrics of step 1" in get(port)
        log_step(run, 2)
        wait_for_line(process, "built in ")
        assert "Metrics of step 2" in get(port)
        process.send_signal(number)
        assert process.wait(timeout=15) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "\nreport   ended\n"
        with pytest.raises(ConnectionRefusedError):
            get(port)
    assert not run.report_path.exists()  # nothing is written into the run
    assert not list(run.figures.iterdir())


def test_a_port_in_use_is_said(run: RunDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"megarl report: port {port} of 127.0.0.1 is in use; expected a free one"
        ):
            run_watch([run.path], port=port)


def test_what_is_no_run_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^megarl report: \S*absent does not exist"):
        run_watch([tmp_path / "absent"], port=None)
    (tmp_path / "ablation.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ablation\.json is damaged"):
        run_watch([tmp_path], port=None)


def test_what_a_page_depends_on(run: RunDirectory) -> None:
    before = look_at((run.path,))
    assert look_at((run.path,)) == before
    run.state_path.touch()  # as a run that lives does
    run.report_path.write_text("what a report writes itself")
    run.heartbeat_path.write_text("{}")
    assert look_at((run.path,)) == before
    seen = {before}
    for change in (
        lambda: log_step(run, 1),
        lambda: log_step(run, 2),
        lambda: run.rollouts_path(1).touch(),
        lambda: (run.evaluations / "step-000001").mkdir(parents=True),
        (run.evaluations / "step-000001" / "results.json").touch,
        lambda: run.write_state(RunState(status="finished", step=2)),
        lambda: run.state_path.write_text("damaged"),
        run.state_path.unlink,
    ):
        time.sleep(0.02)
        change()
        now = look_at((run.path,))
        assert now not in seen
        seen.add(now)
