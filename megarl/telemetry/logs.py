"""Logging and process output.

One file per process, `logs/<role>-<rank>.log`, holds everything it says: log records, prints, C++ output and the Python
stacks of a crash. Rank 0 of a role also speaks to its standard error, unless that already is the file.
"""

import ctypes
import faulthandler
import logging
import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from megarl.telemetry.stacks import hear_stack_requests

_FORMAT = "%(asctime)s %(levelname)-7s {role}-{rank} %(name)s: %(message)s"
_LINE_BUFFERED = 1  # _IOLBF of <stdio.h>; the same number in glibc, musl and macOS


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is now: a live display replaces it to print above its progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _FileHandler(logging.FileHandler):
    """Drops a record that the disk has no room for: what fills it says so itself, and a traceback for each record
    would bury that."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def setup_logging(role: str, rank: int, directory: Path) -> Path:
    """Log this process to `directory/<role>-<rank>.log` (returned); rank 0 also to stderr from INFO up.

    megarl's own records are kept from DEBUG up, those of libraries from INFO up. Call it once per process; a
    second call replaces the first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{role}-{rank}.log"
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if getattr(handler, "megarl", False)]:
        root.removeHandler(handler)
        handler.close()
    to_file: list[logging.Handler] = [_FileHandler(path, encoding="utf-8")]
    if rank == 0 and not _is_stderr(path):
        to_file.append(_StderrHandler())
        to_file[-1].setLevel(logging.INFO)
    for handler in to_file:
        handler.setFormatter(logging.Formatter(_FORMAT.format(role=role, rank=rank)))
        handler.megarl = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("megarl").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    return path


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr, C and C++ code's included, to the end of `path`, line by line.

    Children inherit it. A crash (SIGSEGV, SIGABRT, ...) writes the Python stack of every thread there; without one,
    they can be asked for (`telemetry.stacks`).
    Irreversible: for worker processes, whose output nobody watches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    _line_buffer_c_stdout()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # New text layers: the old ones may be a framework's wrappers that do not write to descriptors 1 and 2.
    # They live as long as the process, so no context manager closes them.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=2)
    hear_stack_requests()


def tail(path: Path, lines: int = 40) -> str:
    """The last `lines` lines of a log, or one line that says it does not exist: for an error about a dead process."""
    if not path.exists():
        return f"({path} does not exist: the process ended before its first output)"
    with path.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, maxlen=lines)).rstrip("\n")


def _is_stderr(path: Path) -> bool:
    try:
        return path.exists() and os.path.samestat(os.fstat(2), path.stat())
    except OSError:  # descriptor 2 is closed: a daemon
        return False


def _line_buffer_c_stdout() -> None:
    """C's stdout is fully buffered when it is a file, so the last lines before a crash would be lost."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    name = "__stdoutp" if sys.platform == "darwin" else "stdout"
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _LINE_BUFFERED, ctypes.c_size_t(0))
