"""What runs that were killed have left on this machine: processes, shared memory, temporary files.

Only megarl's own: a process carries the mark of its run's driver in its environment, a file was written down in a lease
(`telemetry/leases.py`) of a process that is gone. Nothing is judged whose driver is on another machine or in another
container, nothing of another user, and no shared memory that a process still has mapped. Needs no Ray.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megarl.telemetry.leases import SHM, Lease, find_leases
from megarl.telemetry.process_mark import (
    DRIVER_VARIABLE,
    RUN_VARIABLE,
    WORKER_VARIABLE,
    ProcessMark,
    parent_of,
    start_ticks,
)

_END_WAIT_S = 10.0
_POLL_S = 0.1
_MOST_ROUNDS = 4
_RAY_SESSION = "session_"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that nobody uses any more."""

    kind: Literal["process", "shared memory", "directory"]
    name: str
    """For a person: what it is."""
    run: str
    """The run directory it belongs to."""
    path: Path | None = None
    pid: int = 0
    started: int = 0
    """Start of the process in clock ticks after the boot."""


@contextmanager
def marked_process(run: Path) -> Iterator[None]:
    """While the block runs, mark this process and all it starts as those of a run that it drives.

    What it starts afterwards is none of the run's, and outlives this process.
    """
    before = process_marks()
    os.environ[DRIVER_VARIABLE] = str(ProcessMark.of(os.getpid()))
    os.environ[RUN_VARIABLE] = str(run)
    try:
        yield
    finally:
        for name in (DRIVER_VARIABLE, RUN_VARIABLE):
            os.environ.pop(name, None)
        os.environ.update(before)


def process_marks() -> dict[str, str]:
    """The mark as environment variables, for processes that are not started by this one."""
    return {name: os.environ[name] for name in (DRIVER_VARIABLE, RUN_VARIABLE) if name in os.environ}


def find_leftovers(*, ended: ProcessMark | None = None, temporary: Path | None = None) -> list[Leftover]:
    """Everything left by runs whose driver is gone. ended: a driver that lives, and whose run is over.

    temporary: where leases are looked for; default: where temporary files go.
    """
    found = _processes_of_ended_runs(ended)
    mapped = mapped_inodes({leftover.pid for leftover in found})
    for lease in find_leases(temporary or Path(tempfile.gettempdir())):
        # The processes below a dead owner may be ending, as long as its run is.
        over = lease.driver == ended or lease.driver.standing() != "alive"
        if over and (lease.owner == ended or lease.owner.standing() == "dead"):
            found += _of_lease(lease, mapped)
    return found


def clean_killed_runs() -> None:
    """Remove what runs that were killed have left on this machine, and print what that was."""
    found = find_leftovers()
    clean_leftovers(found)
    for leftover in found:
        print(f"removed what a killed run left ({leftover.run or 'unknown'}): {leftover.name}", flush=True)


def clean_leftovers(found: Iterable[Leftover]) -> None:
    """Kill the processes, then remove the files. What has gone meanwhile, or cannot be removed, is left."""
    found = list(found)
    processes = [leftover for leftover in found if leftover.kind == "process"]
    for process in processes:
        # A number may have been given away since: only the process that was found is killed.
        if start_ticks(process.pid) == process.started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
    await_end(processes, _END_WAIT_S)
    for leftover in found:
        if leftover.path is None:
            continue
        if leftover.kind == "directory":
            shutil.rmtree(leftover.path, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.path.unlink()


def end_run_processes(*, grace_s: float) -> list[Leftover]:
    """After a run, in its driver: what it started on this machine ends within `grace_s` or is killed, and its files go.

    Returns what had to be killed or removed.
    """
    mine, run = ProcessMark.of(os.getpid()), os.environ.get(RUN_VARIABLE)
    await_end(_processes_of_ended_runs(mine), grace_s)
    removed: list[Leftover] = []
    # Once more after the first time: what a process left that lived until then, or started meanwhile.
    for _ in range(_MOST_ROUNDS):
        found = [leftover for leftover in find_leftovers(ended=mine) if leftover.run == run]
        if not found:
            break
        clean_leftovers(found)
        removed += found
    return removed


def end_earlier_worker() -> list[Leftover]:
    """In a worker of a run: end what an earlier one in its place has left on this machine, though the run goes on: its
    processes, stopped ones too, and the files of those that are gone. Returns what that was."""
    mine = {name: os.environ.get(name) for name in (DRIVER_VARIABLE, WORKER_VARIABLE)}
    if None in mine.values():
        return []

    def run_of(variables: Mapping[str, str]) -> str | None:
        same = all(variables.get(name) == value for name, value in mine.items())
        return variables.get(RUN_VARIABLE, "") if same else None

    found = [process for process in _find_processes(run_of) if not _is_below(process.pid, os.getpid())]
    clean_leftovers(found)
    mapped = mapped_inodes()
    of_leases = [
        leftover
        for lease in find_leases()
        if (str(lease.driver), lease.worker) == tuple(mine.values()) and lease.owner.standing() == "dead"
        for leftover in _of_lease(lease, mapped)
    ]
    clean_leftovers(of_leases)
    return found + of_leases


def await_end(processes: Iterable[Leftover], timeout_s: float) -> None:
    """Return when all have ended, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    waiting = list(processes)
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        waiting = [process for process in waiting if start_ticks(process.pid) == process.started]


def _processes_of_ended_runs(ended: ProcessMark | None) -> list[Leftover]:
    """Of drivers that are gone, or of `ended`."""
    found = list(_find_processes(lambda variables: _run_that_is_over(variables, ended)))
    # The driver's own tracker lives as long as the driver.
    return [each for each in found if ended is None or "multiprocessing.resource_tracker" not in each.name]


def _find_processes(run_of: Callable[[Mapping[str, str]], str | None]) -> Iterator[Leftover]:
    """Processes in whose marked environment `run_of` sees a run of which they are left, and all below them: Ray's
    agents, which show a long name of their own choice, lose their environment to it."""
    found: dict[int, Leftover] = {}
    unmarked: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            variables = _read_variables(entry)
            if DRIVER_VARIABLE not in variables:
                unmarked.append(pid)
            elif (run := run_of(variables)) is not None and (process := _describe(pid, run)):
                found[pid] = process
        except OSError:
            continue  # it ended meanwhile
    parents = {pid: parent_of(pid) for pid in unmarked} if found else {}
    while below := [pid for pid, parent in parents.items() if parent in found]:
        for pid in below:
            parent = parents.pop(pid)
            assert parent is not None
            with suppress(OSError):
                if process := _describe(pid, found[parent].run):
                    found[pid] = process
    yield from found.values()


def _is_below(pid: int, ancestor: int) -> bool:
    parent = parent_of(pid)
    while parent not in (None, 0, ancestor):
        parent = parent_of(parent)
    return parent == ancestor


def _run_that_is_over(variables: Mapping[str, str], ended: ProcessMark | None) -> str | None:
    """The run of a process with these variables, if its driver is gone or `ended`."""
    try:
        driver = ProcessMark.parse(variables[DRIVER_VARIABLE])
    except (KeyError, ValueError):
        return None  # none of ours
    return variables.get(RUN_VARIABLE, "") if driver == ended or driver.standing() == "dead" else None


def _describe(pid: int, run: str) -> Leftover | None:
    started = start_ticks(pid)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    if started is None or start_ticks(pid) != started:
        return None  # the number was given away while it was looked at
    return Leftover("process", f"process {pid}: {command[:100]}", run, pid=pid, started=started)


def _read_variables(process: Path) -> dict[str, str]:
    lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _of_lease(lease: Lease, mapped: set[int]) -> Iterator[Leftover]:
    """What goes with a lease whose owner is gone; the lease itself last, so that what fails is found again."""
    with suppress(OSError, ValueError, KeyError):
        for path in lease.extra():
            status = path.lstat() if path.is_symlink() or path.exists() else None
            if status is None or status.st_uid != os.getuid():
                continue
            if path.parent == SHM and path.is_file() and status.st_ino not in mapped:
                yield Leftover("shared memory", f"{path}, {_size(status.st_size)}", lease.run, path=path)
            elif path.name.startswith(_RAY_SESSION) and path.is_dir():
                name = f"{path} of Ray, {_size(_tree_bytes(path))}"
                yield Leftover("directory", name, lease.run, path=path)
    yield Leftover("directory", f"{lease.path}, {_size(_tree_bytes(lease.path))}", lease.run, path=lease.path)


def mapped_inodes(but: Set[int] = frozenset()) -> set[int]:
    """Files in /dev/shm that a process maps, by inode: a semaphore's file is mapped under an earlier name. Processes
    in `but` are about to end and do not count."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in but:
            continue
        try:
            lines = (entry / "maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        found |= {int(line.split()[4]) for line in lines if f" {SHM}/" in line}
    return found


def _tree_bytes(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size
    return total


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
