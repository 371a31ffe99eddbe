"""A page that is built again when what it shows has changed, by a process of its own: requests, and the terminal, are
answered meanwhile, and what building needs of memory goes when that process ends.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from megarl.report.serving import LivePage, waiting_page

LOOK_EVERY_S = 1.0
REBUILD_EVERY_S = 5.0
_SHARE = 0.25
"""Of the time that building, or looking, may take at most: what takes longer is done less often."""

Build = Callable[[tuple[Path, ...], Path], None]
"""(runs, where the page goes). It is called in another process, so it is a function of a module."""


class Builder:
    """The process that builds. Used as a context."""

    def __init__(self, build: Build, runs: tuple[Path, ...], page: Path) -> None:
        self._build, self._runs, self._page = build, runs, page
        self._process: multiprocessing.process.BaseProcess | None = None

    def build(self) -> str | None:
        """Build the page; None when it is there, else why it is not. One that has died is started again."""
        try:
            if self._process is None or not self._process.is_alive():
                self._start()
            self._ours.send(None)
            problem: str | None = self._ours.recv()
        except (EOFError, OSError):
            return "the process that builds it has died"
        return problem

    @property
    def pid(self) -> int | None:
        """Of the process, once there is one."""
        return None if self._process is None else self._process.pid

    def end(self) -> None:
        """At once, also in the middle of a page."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        work = (theirs, self._build, self._runs, self._page)
        self._process = context.Process(target=_build_when_asked, args=work, name="megarl-page", daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here


def _build_when_asked(asked: Connection, build: Build, runs: tuple[Path, ...], page: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the other one ends this
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        problem = None
        try:
            build(runs, page)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        asked.send(problem)


@dataclass(kw_only=True)
class Rebuilding:
    """Keeps a served page what the files say."""

    live: LivePage
    builder: Builder
    page: Path
    look: Callable[[], Hashable]
    """What the page depends on, as cheap as can be: another value, another page."""
    tell: Callable[[str], None]
    """Of a person: that a page was built, or why not."""
    every_s: float = REBUILD_EVERY_S

    def run(self, ended: threading.Event) -> None:
        """Until `ended`. A page that cannot be built leaves the one before."""
        seen: Hashable = None
        problem: str | None = None
        first = True
        while not ended.is_set():
            began_s = time.monotonic()
            now = self.look()
            if first or now != seen:
                earlier, problem, seen = problem, self._build_once(first), now
                first = first and problem is not None
                if problem != earlier and problem is not None:
                    self.tell(f"not built: {problem}")
                took_s = time.monotonic() - began_s
                ended.wait(max(self.every_s, took_s / _SHARE) - took_s)
            else:
                ended.wait(max(LOOK_EVERY_S, (time.monotonic() - began_s) / _SHARE))

    def _build_once(self, first: bool) -> str | None:
        began_s = time.monotonic()
        problem = self.builder.build()
        if problem is None:
            html = self.page.read_bytes()
            self.live.put(html)
            self.tell(f"built in {time.monotonic() - began_s:.1f} s, {len(html) / 1e6:.1f} MB")
        elif first:
            self.live.put(waiting_page(f"The page cannot be built yet: {problem}"))
        return problem
