"""Run the `megarl` command as a person would, watch every process it starts, and see what it leaves behind.

Processes are followed by their place in the tree while they live, so one that outlives its parent is still known. No
process that the command did not start is ever touched.
"""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from megarl.telemetry.run_directory import RunDirectory

MEGARL = Path(sys.executable).with_name("megarl")
SHM = Path("/dev/shm")
WATCH_EVERY_S = 0.25


class Megarl:
    """One `megarl VERB ...` in a process of its own; leaving the `with` block ends its whole process tree."""

    def __init__(self, *arguments: str | Path, cwd: Path, program: Sequence[str | Path] = (MEGARL,)) -> None:
        """Start it in `cwd`; its output goes to two files there. program: what stands for the command."""
        self.cwd = cwd
        # Short, because sockets are made below it; its own, so that what stays behind is the run's.
        self.scratch = Path(tempfile.mkdtemp(prefix="megarl-e2e-", dir="/tmp"))
        self._shm_before = set(SHM.iterdir())
        self._stdout, self._stderr = cwd / "stdout.txt", cwd / "stderr.txt"
        self.started_s = time.monotonic()
        environment = os.environ | {
            "TMPDIR": str(self.scratch),
            "RAY_TMPDIR": "/tmp",
            "OMP_NUM_THREADS": "1",
            # Where it is without the TMPDIR: else every run compiles PyTorch's C++ header anew, ten seconds of a core.
            "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}",
        }
        self.environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [*map(str, program), *map(str, arguments)],
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._root = psutil.Process(self._process.pid)
        self._known = {self._root}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._watcher.join()
        for process in self.alive():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(timeout=30)
        if error is not None:
            print(f"{self.text}\nlogs:\n{self._log_tails()}")
        shutil.rmtree(self.scratch, ignore_errors=True)
        for path in self._orphans():
            path.unlink(missing_ok=True)

    @property
    def text(self) -> str:
        """What the person has seen so far."""
        return self._stdout.read_text(errors="replace") + self._stderr.read_text(errors="replace")

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory.open(self.cwd / "runs" / "latest")

    def wait(self, timeout_s: float) -> int:
        """The exit code; TimeoutExpired when there is none in time."""
        return self._process.wait(timeout=timeout_s)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float) -> None:
        """Return when `happened()`; AssertionError when the command ends first or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert self._process.poll() is None, (
                f"it ended with exit code {self._process.returncode} before\n{self.text}"
            )
            assert time.monotonic() < deadline, f"nothing of the kind within {timeout_s} s\n{self.text}"
            time.sleep(0.2)

    def send_signal(self, number: signal.Signals) -> None:
        """To the command's own process only, as `kill PID` and a batch system do."""
        self._process.send_signal(number)

    def find(self, words: str) -> list[psutil.Process]:
        """Live processes of the run whose command line has `words`."""
        found = []
        for process in self.alive():
            try:
                if words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def alive(self) -> list[psutil.Process]:
        """Every process of the run that has not ended."""
        self._look()
        with self._lock:
            return [process for process in self._known if _lives(process)]

    def leftovers(self, grace_s: float = 10.0) -> list[str]:
        """Processes, shared memory and temporary files still there `grace_s` after the end; [] as soon as none is."""
        deadline = time.monotonic() + grace_s
        while (found := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(0.25)
        return found

    def _leftovers(self) -> list[str]:
        processes = [f"process {process.pid}: {_command(process)}" for process in self.alive()]
        return (
            processes
            + [f"shared memory {path}" for path in self._orphans()]
            + [f"temporary file {path}" for path in self.scratch.iterdir() if _is_ours(path)]
        )

    def _orphans(self) -> Sequence[Path]:
        """New files in /dev/shm that no living process holds: others on this machine make and hold theirs."""
        new = [path for path in set(SHM.iterdir()) - self._shm_before if _owned(path)]
        if not new:
            return []
        held: set[int] = set().union(*(_held_inodes(process.pid) for process in psutil.process_iter()))
        return [path for path in new if path.exists() and path.stat().st_ino not in held]

    def _watch(self) -> None:
        while not self._done.wait(WATCH_EVERY_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            for process in list(self._known):
                try:
                    self._known.update(process.children(recursive=True))
                except psutil.NoSuchProcess:
                    continue

    def _log_tails(self) -> str:
        logs = sorted((self.cwd / "runs").glob("latest/logs/*"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _held_inodes(pid: int) -> set[int]:
    """Files in /dev/shm that a process maps; by inode, because a semaphore's file is mapped under an earlier name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in lines if f" {SHM}/" in line}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "(ended)"


def _owned(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _is_ours(path: Path) -> bool:
    """Engine directories and vLLM's sockets; caches of compilers may stay."""
    return path.name.startswith("megarl") or path.is_socket()
