"""One process drives a run: a second is refused as long as the first lives, and no longer."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megarl.telemetry import run_lock as module
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_lock import LOCK_FILE, RunHeldError, hold_run

HOLDER = """
import os, sys, time
from pathlib import Path
from megarl.telemetry.run_lock import hold_run
hold_run(Path(sys.argv[1]))
child = os.fork() if "fork" in sys.argv else None
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""


@contextmanager
def held(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(a process that drives the run in `directory`, what it said)."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        yield holder, holder.stdout.readline().strip()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_a_run_is_driven_by_one_process_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        host = ProcessMark.of(os.getpid()).host
        for _ in range(2):
            with pytest.raises(RunHeldError, match=rf"^it is driven by process {holder.pid} on {host}$"):
                hold_run(tmp_path)
    hold_run(tmp_path)  # however the first one ended
    assert ProcessMark.parse((tmp_path / LOCK_FILE).read_text()) == ProcessMark.of(os.getpid())


def test_a_child_of_the_process_does_not_hold_it(tmp_path: Path) -> None:
    """A process of a verifier, say, that is still ending when the run goes on."""
    with held(tmp_path, "fork") as (holder, child):
        holder.kill()
        holder.wait()
        try:
            os.kill(int(child), 0)
            hold_run(tmp_path)
        finally:
            os.kill(int(child), 9)


def test_one_that_has_not_yet_said_who_it_is_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with pytest.raises(RunHeldError, match=r"^it is driven by another process$"):
            hold_run(tmp_path)
        dead = ProcessMark.of(os.getpid())
        (tmp_path / LOCK_FILE).write_text(str(ProcessMark(dead.host, dead.boot, dead.namespace, dead.pid, 1)))
        with pytest.raises(RunHeldError, match=r"^it is driven by another process$"):
            hold_run(tmp_path)


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(module.fcntl, "lockf", refuse)
    hold_run(tmp_path)
    assert "driver.lock cannot be locked (Function not implemented): see to it" in caplog.text


def test_what_else_goes_wrong_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module.fcntl, "lockf", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        hold_run(tmp_path)
