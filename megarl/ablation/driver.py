"""Runs in processes of their own, so many at a time; whatever becomes of one, the others go on.

    waiting --start--> running --exit 0, run finished--> finished
                          |------exit 2----------------> failed       its configuration is refused: it would be again
                          |------any other failure-----> waiting      behind the others, `retries` times, then failed
                          '------stopped by a signal---> stopped      it goes on when somebody asks for it

What a run leaves for the next one of its shape, Ray and engines, is kept in its place (`keepers`) as long as runs end
well.

A signal to the driver is handed on to every run under way, each of which ends by its own rules (cli.interrupts), and no
other is started. A run that was finished before, by an earlier driver, is left as it is.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from megarl.ablation.directory import CellFacts, CellStatus
from megarl.ablation.keepers import KeeperStart, Place
from megarl.ablation.processes import REFUSED, STOPPED, FoundProcess, RunProcess, Slot, last_words
from megarl.telemetry.run_directory import RunDirectory, Standing

_LOOK_EVERY_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_OTHER = 2
"""`Place.rank` of one that must be cleared first."""
_HANDED_ON = {signal.SIGHUP: signal.SIGTERM}
"""A terminal that was closed: runs know only the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run to be made."""

    name: str
    link: Path
    """Leads to the run directory, from the moment there is one."""
    log: Path
    steps: int
    start: Callable[[Slot], RunProcess]
    """Begins it, or goes on with it, in a slot."""
    keeper: KeeperStart | None = None
    """Of the process that keeps its Ray and engines for the next; None where they are its own."""
    before: CellFacts = field(default_factory=CellFacts)
    """How it stands when the driver begins."""

    def run(self) -> RunDirectory | None:
        found = self.link.resolve()
        return RunDirectory(found) if (found / "state.json").is_file() else None


class Watcher(Protocol):
    """Who shows how it goes."""

    def began(self, task: Task, facts: CellFacts) -> None: ...

    def ended(self, task: Task, facts: CellFacts) -> None: ...

    def stopping(self, signal_name: str, running: Sequence[str]) -> None:
        """A signal was handed on to these."""

    def look(self, facts: Mapping[str, CellFacts]) -> None:
        """Several times a second."""


class Driver:
    """Runs tasks. `facts` are theirs at every moment, by name, in the order of the tasks."""

    def __init__(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        *,
        retries: int,
        watcher: Watcher,
        write: Callable[[Mapping[str, CellFacts]], None],
    ) -> None:
        """slots: as many run at a time. write: called whenever `facts` have changed."""
        self.facts = {task.name: task.before for task in tasks}
        self._tasks = {task.name: task for task in tasks}
        self._free, self._retries = [Place(slot) for slot in slots], retries
        self._clearing: list[Place] = []
        """Where what was kept is about to end."""
        self._watcher, self._write = watcher, write
        self._waiting = deque(self._order(tasks))
        self._running: dict[str, tuple[RunProcess, Place | None]] = {}
        self._failures = dict.fromkeys(self.facts, 0)
        self._found: dict[str, object] = {}
        """Which state file a task's run had when its latest attempt began."""
        self._heard_signals: deque[signal.Signals] = deque()
        self.stopped_by: str | None = None
        """The signal after which nothing more is started."""

    def run(self) -> bool:
        """Until every task has ended, or a signal came and those under way have. Whether all are finished."""
        with self._heard():
            self._adopt()
            self._write(self.facts)
            try:
                while self._running or (self._waiting and self.stopped_by is None):
                    self._hand_on()
                    self._find_clear()
                    self._fill()
                    self._watcher.look(self.facts)
                    time.sleep(_LOOK_EVERY_S)
                    self._reap()
                self._clear_all()
            except BaseException:
                self._end_all()
                raise
            self._hand_on()
            self._watcher.look(self.facts)
        return all(facts.status == "finished" for facts in self.facts.values())

    @staticmethod
    def _order(tasks: Sequence[Task]) -> Iterator[str]:
        """Those that have stopped first, since they are nearest to their end; those that have failed last."""
        lost = {task.name for task in tasks if task.before.status == "running" and task.run() is None}
        for statuses in (("stopped",), ("waiting", "skipped"), ("failed",)):
            yield from (task.name for task in tasks if task.before.status in statuses)
        yield from lost

    def _adopt(self) -> None:
        """Runs that an earlier driver has started and that live take the place of a new one each."""
        for task in self._tasks.values():
            run = task.run() if task.before.status == "running" else None
            if run is not None:
                self._running[task.name] = (FoundProcess(run), self._free.pop() if self._free else None)

    def _fill(self) -> None:
        # The GPUs and the cores of a run that was found are not known.
        alone = any(isinstance(process, FoundProcess) for process, _ in self._running.values())
        while self._waiting and self._free and self.stopped_by is None:
            if alone and (self._free[0].slot.variables or self._free[0].slot.cores):
                return
            task = self._tasks[self._waiting[0]]
            shape = task.keeper.shape if task.keeper else None
            place = min(self._free, key=lambda free: free.rank(shape))
            if place.rank(shape) == _OTHER:
                if not self._clearing:  # else one will be free soon, and one is enough
                    self._free.remove(place)
                    self._clear(place)
                return
            self._free.remove(place)
            self._waiting.popleft()
            self._begin(task, place)

    def _clear(self, place: Place) -> None:
        place.clear()
        self._clearing.append(place)

    def _find_clear(self) -> None:
        if not self._waiting:  # nobody comes who could use what is kept
            for place in [place for place in self._free if place.keeper is not None]:
                self._free.remove(place)
                self._clear(place)
        for place in [place for place in self._clearing if place.is_clear]:
            self._clearing.remove(place)
            self._free.append(place)

    def _begin(self, task: Task, place: Place) -> None:
        before = self.facts[task.name]
        self._set(task, CellFacts(status="running", attempts=before.attempts + 1))
        self._found[task.name] = _state_file(task.run())
        try:
            process = task.start(place.open(task.keeper))
        except OSError as error:
            self._clear(place)
            self._fail(task, f"its process did not start: {error}", again=True)
            return
        self._running[task.name] = (process, place)
        self._watcher.began(task, self.facts[task.name])

    def _reap(self) -> None:
        for name, (process, place) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            if place is not None and (code == 0 or place.is_clear):
                self._free.append(place)
            elif place is not None:  # what it has left is in doubt
                self._clear(place)
            self._judge(self._tasks[name], code)

    def _clear_all(self) -> None:
        """Return when nothing is kept any more."""
        places = [*self._free, *self._clearing, *(place for _, place in self._running.values() if place is not None)]
        for place in places:
            place.clear()
        while not all(place.is_clear for place in places):
            time.sleep(_LOOK_EVERY_S)

    def _end_all(self) -> None:
        """After an error of the driver itself no run is left without one. They were asked to stop, or are now."""
        processes = [process for process, _place in self._running.values()]
        if self.stopped_by is None:
            for process in processes:
                process.send_signal(signal.SIGTERM)
        while any(process.poll() is None for process in processes):
            time.sleep(_LOOK_EVERY_S)
        self._clear_all()

    def _judge(self, task: Task, code: int) -> None:
        run = task.run()
        status, message = _standing_of(run)
        # Else the process has ended before it touched the run, which tells of the attempt before.
        touched = run is not None and _state_file(run) != self._found.get(task.name)
        if code == 0 and status == "finished":
            self._set(task, replace(self.facts[task.name], status="finished", message=None))
            self._watcher.ended(task, self.facts[task.name])
        elif self.stopped_by is not None or (code == STOPPED and status == "interrupted"):
            stopped = replace(self.facts[task.name], status="stopped" if run else "waiting", message=message)
            self._set(task, stopped)
            self._watcher.ended(task, stopped)
        else:
            text = message if touched and status in (None, "failed", "killed") else None
            self._fail(task, text or _describe_end(code, task.log), again=code != REFUSED)

    def _fail(self, task: Task, message: str, *, again: bool) -> None:
        """again: another attempt may get further."""
        self._failures[task.name] += 1
        retry = again and self._failures[task.name] <= self._retries
        status: CellStatus = "waiting" if retry else "failed"
        if retry:
            self._waiting.append(task.name)
        facts = replace(self.facts[task.name], status=status, message=message)
        self._set(task, facts)
        self._watcher.ended(task, facts)

    def _set(self, task: Task, facts: CellFacts) -> None:
        self.facts[task.name] = facts
        self._write(self.facts)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        # One that is ignored stays so: `nohup` outlives its terminal.
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        """Only noted: a run that is being started just now must hear of it too, and once."""
        self._heard_signals.append(signal.Signals(number))

    def _hand_on(self) -> None:
        while self._heard_signals:
            number = self._heard_signals.popleft()
            self.stopped_by = number.name
            for process, _place in self._running.values():
                process.send_signal(_HANDED_ON.get(number, number))
            self._watcher.stopping(number.name, list(self._running))


def _standing_of(run: RunDirectory | None) -> tuple[Standing | None, str | None]:
    """(None, why) where its state cannot be read: that is this run's failure, and not that of the others."""
    try:
        return (None, None) if run is None else run.standing()
    except (OSError, ValueError, TypeError) as error:
        return None, str(error)


def _state_file(run: RunDirectory | None) -> tuple[int, int] | None:
    """Another after every write, which replaces the file. Times alone would not tell an attempt from the one right
    before it, since a file's time and the clock's differ."""
    if run is None:
        return None
    file = run.state_path.stat()
    return file.st_ino, file.st_mtime_ns


def _describe_end(code: int, log: Path) -> str:
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    words = last_words(log)
    return f"its process ended with {how}" + (f": {words}" if words else f"; see {log}")
