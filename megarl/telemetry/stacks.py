"""What processes are doing: the Python stacks of their threads and tasks, told by themselves or asked from outside.

A process that can run Python tells its own (`own_stacks`), whatever its main thread waits for in C. One that cannot,
because a call holds the interpreter's lock, answers a signal: faulthandler writes its stacks from the handler, in C,
into a file in memory that others of the same user on its machine read through /proc. So no stack waits for a disk, and
no debugger is needed. A stopped process tells nothing until it goes on, and it is said that it is stopped.
"""

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType
from typing import Any

import psutil

from megarl.telemetry.process_mark import process_state

_SIGNAL = signal.SIGUSR2
_FILE = "megarl-stacks"
_POLL_S = 0.02
_QUIET_S = 0.1
"""A process that has written nothing for so long has written all."""
_MOST_FRAMES = 100


def hear_stack_requests() -> None:
    """From now on this process answers `stacks_of`. Once per process; more often changes nothing."""
    if _find_file(os.getpid()) is None:
        descriptor = os.memfd_create(_FILE)
        faulthandler.register(_SIGNAL, file=descriptor, all_threads=True, chain=False)


def own_stacks(loops: Iterable[asyncio.AbstractEventLoop] = ()) -> str:
    """Of every thread but the one that asks, and of the tasks of these event loops, the innermost call first. Reads no
    source files: they may be on the disk that is waited for."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    asking = threading.get_ident()
    frames = ((ident, frame) for ident, frame in sys._current_frames().items() if ident != asking)
    threads = [(f"thread {names.get(ident, ident)}", _walk(frame)) for ident, frame in frames]
    tasks = Counter(_describe_task(task) for loop in loops for task in asyncio.all_tasks(loop))
    counted = [(f"{count} tasks" if count > 1 else "task", lines) for lines, count in tasks.items()]
    return "\n".join("\n".join([name, *lines]) for name, lines in [*threads, *counted])


def all_stacks(loops: Iterable[asyncio.AbstractEventLoop] = (), *, but: Iterable[int] = ()) -> str:
    """`own_stacks`, and those of all processes below this one that hear requests, without those of `but` and all below
    them."""
    parts = [f"process {os.getpid()}\n{_indent(own_stacks(loops))}"]
    for pid in _below(os.getpid(), set(but)):
        if _find_file(pid) is not None:
            parts.append(f"process {pid} ({_name(pid)})\n{_indent(stacks_of(pid))}")
    return "\n".join(parts)


def stacks_of(pid: int, *, within_s: float = 2.0) -> str:
    """Of the threads of another process on this machine; blocks. Why there are none, where it tells none."""
    state, file = process_state(pid), _find_file(pid)
    if state.startswith("stopped"):
        return f"it is {state}: a stopped process tells nothing until it goes on"
    if state == "gone":
        return "it is gone"
    if file is None or not _catches_signal(pid):
        return f"it is {state}, and does not tell its stacks: it is only starting, or ending"
    try:
        before = file.stat().st_size
        os.kill(pid, _SIGNAL)
        size, changed_s = before, time.monotonic()
        started_s = changed_s
        while (size == before and time.monotonic() - started_s < within_s) or (
            size > before and time.monotonic() - changed_s < _QUIET_S
        ):
            time.sleep(_POLL_S)
            if (now := file.stat().st_size) != size:
                size, changed_s = now, time.monotonic()
        text = file.read_bytes()[before:].decode(errors="replace").strip()
    except OSError:
        return "it is gone"
    return text or f"it did not answer within {within_s:g} s; it is {process_state(pid)}"


def write_stacks(folder: Path, text: str, *, of: str = "") -> Path:
    """Into a new file of the run's logs, stacks[-of]-<UTC time>.txt. OSError where the disk does not take it."""
    path = folder / f"stacks{of and f'-{of}'}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.txt"
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return path


def _walk(frame: FrameType | None) -> tuple[str, ...]:
    lines: list[str] = []
    while frame is not None and len(lines) < _MOST_FRAMES:
        lines.append(_describe_frame(frame))
        frame = frame.f_back
    return tuple(lines)


def _describe_frame(frame: FrameType) -> str:
    return f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _describe_task(task: "asyncio.Task[Any]") -> tuple[str, ...]:
    """From the await that it waits in to its first coroutine; of coroutines that are compiled, Ray's, their names."""
    lines: list[str] = []
    waiting: object = task.get_coro()
    while waiting is not None and len(lines) < _MOST_FRAMES:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
        name = getattr(waiting, "__qualname__", None)
        if isinstance(frame, FrameType):
            lines.append(_describe_frame(frame))
        elif name is not None:
            lines.append(f"  in {name}")
        waiting = _awaited_by(waiting, named=name is not None)
    return tuple(reversed(lines))


def _awaited_by(waiting: object, *, named: bool) -> object | None:
    """What a coroutine or an asynchronous generator awaits; what it awaits may be the wrapper of another (`named` is
    false of it), which only the garbage collector is told of."""
    if named:
        return getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
    wrapped = (each for each in gc.get_referents(waiting) if isinstance(each, CoroutineType | AsyncGeneratorType))
    return next(wrapped, None)


def _find_file(pid: int) -> Path | None:
    """Where the process writes its stacks: a file in memory that only its descriptors name."""
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor).startswith(f"/memfd:{_FILE} "):
                    return descriptor
            except FileNotFoundError:
                continue  # closed meanwhile
    except OSError:
        pass  # it ended, or is another user's
    return None


def _catches_signal(pid: int) -> bool:
    """Whether the signal would be caught; it ends a process that is not prepared."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (_SIGNAL - 1) & 1)


def _below(pid: int, but: set[int]) -> Iterator[int]:
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return
    for child in children:
        if child.pid not in but:
            yield child.pid
            yield from _below(child.pid, but)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "ended"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
