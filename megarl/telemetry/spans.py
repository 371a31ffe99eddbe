"""Wall time by phase: a metric for the step, and a Chrome trace of the run.

The trace file is valid to open at every moment: it is a JSON array that is written one event per line and whose closing
bracket is optional by the Trace Event Format, so a killed run leaves a readable timeline (chrome://tracing, Perfetto).
Times in it are microseconds since the epoch, so that traces of several processes line up. One process writes a file.
"""

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.metrics import Metrics, declared

_HEAD = "[\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSpan:
    """A block that is being timed."""

    name: str
    for_s: float
    """Seconds since it began."""
    details: dict[str, Any]


class Spans:
    """Collects spans; `collect()` empties the step's totals, `close()` ends the file. Safe to use from threads."""

    def __init__(self, timeline: Path | None = None, *, process: str = "controller") -> None:
        """`timeline` is continued when it exists (a resumed run), after dropping a last line that was cut in half."""
        self._lock = threading.Lock()
        self._total_s: dict[str, float] = {}
        self._lanes: dict[str, int] = {}
        self._open: dict[int, tuple[str, float, dict[str, Any]]] = {}
        self._numbers = itertools.count()
        # perf_counter is monotonic; the offset puts it on the epoch once, so a clock adjustment bends no span.
        self._epoch_offset_s = time.time() - time.perf_counter()
        self._file: TextIO | None = None
        self._is_incomplete = False
        if timeline is not None:
            _make_appendable(timeline)
            self._file = timeline.open("a", encoding="utf-8")
            self._write({"name": "process_name", "ph": "M", "pid": os.getpid(), "args": {"name": process}})

    @contextmanager
    def measure(self, name: str, *, lane: str = "main", **details: Any) -> Iterator[None]:
        """Time the block as `timing_s/<name>`, exceptions included; calls of one name in a step add up.

        Spans that overlap in time without being nested (concurrent coroutines) need a `lane` each to be drawn apart.
        `details` appear in the trace and must be JSON-able.
        """
        start_s = time.perf_counter()
        try:
            with self.draw(name, lane=lane, **details):
                yield
        finally:
            with self._lock:
                self._total_s[name] = self._total_s.get(name, 0.0) + time.perf_counter() - start_s

    @contextmanager
    def draw(self, name: str, *, lane: str, **details: Any) -> Iterator[None]:
        """`measure` for what does not count into `timing_s`."""
        start_s, number = time.perf_counter(), next(self._numbers)
        with self._lock:
            self._open[number] = name, start_s, details
        try:
            yield
        finally:
            end_s = time.perf_counter()
            with self._lock:
                del self._open[number]
                self._write_span(name, start_s + self._epoch_offset_s, end_s - start_s, lane, details)

    def open(self) -> list[OpenSpan]:
        """What is being timed now, the first to have begun first."""
        now_s = time.perf_counter()
        with self._lock:
            spans = list(self._open.values())
        return [OpenSpan(name=name, for_s=now_s - start_s, details=details) for name, start_s, details in spans]

    def record(self, name: str, *, start_s: float, end_s: float, lane: str, **details: Any) -> None:
        """Draw a span measured elsewhere, in seconds since the epoch; it does not count into `timing_s`. Here they come
        from `now_s`: the machine's clock may be set back between the two."""
        if end_s < start_s:
            raise ValueError(f"span {name!r} ends at {end_s}, before its start {start_s}")
        with self._lock:
            self._write_span(name, start_s, end_s - start_s, lane, details)

    def now_s(self) -> float:
        """Seconds since the epoch, by a clock that nobody sets once this object is made."""
        return time.perf_counter() + self._epoch_offset_s

    def collect(self) -> Metrics:
        """`timing_s/<name>` of every span since the last call, in seconds."""
        with self._lock:
            totals, self._total_s = self._total_s, {}
        return declared({f"timing_s/{name}": total_s for name, total_s in totals.items()})

    def close(self) -> None:
        """End the file with the closing bracket. Later spans are timed but no longer drawn."""
        with self._lock:
            if self._file is not None:
                # The array must not end in a comma to be strict JSON, so the last event is written without one.
                event = {
                    "name": "end",
                    "ph": "i",
                    "s": "g",
                    "pid": os.getpid(),
                    "tid": 0,
                    "ts": int(self.now_s() * 1e6),
                }
                file, self._file = self._file, None
                self._append(file, json.dumps(event) + "\n]\n")
                with suppress(OSError):  # what is still to be written was told
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_span(self, name: str, start_s: float, duration_s: float, lane: str, details: dict[str, Any]) -> None:
        if self._file is None:
            return
        if lane not in self._lanes:
            self._lanes[lane] = len(self._lanes)
            thread = {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": self._lanes[lane]}
            self._write({**thread, "args": {"name": lane}})
        event = {"name": name, "ph": "X", "pid": os.getpid(), "tid": self._lanes[lane]}
        event |= {"ts": int(start_s * 1e6), "dur": int(duration_s * 1e6)}
        self._write(event | {"args": details} if details else event)

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is not None:
            self._append(self._file, json.dumps(event) + ",\n")

    def _append(self, file: TextIO, text: str) -> None:
        """A disk that takes no more costs spans, and is told once."""
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            if not self._is_incomplete:
                _log.warning("%s takes no more (%s); THE RUN GOES ON, spans are missing there", file.name, error)
            self._is_incomplete = True


def read_timeline(path: Path) -> list[dict[str, Any]]:
    """The events of a timeline, of a killed run too: a line that was cut in half or damaged is left out."""
    head, *lines = path.read_bytes().split(b"\n")
    if head.strip() != b"[":
        raise ValueError(
            f"{path} is no megarl timeline: its first line should be '[', found {head[:80]!r}; remove or move it"
        )
    return [event for line in lines[:-1] if (event := _read_event(line)) is not None]


def _read_event(line: bytes) -> dict[str, Any] | None:
    # A comma ends every complete event except the last of a closed file, which has the bracket after it.
    try:
        event = json.loads(line.rstrip().rstrip(b","))
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.keys() >= {"name", "ph"} else None


def write_timeline(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """Replace `path` by a timeline of these events, to which more can be appended."""
    write_text_atomically(path, _HEAD + "".join(json.dumps(event) + ",\n" for event in events))


def _make_appendable(path: Path) -> None:
    """Leave `path` as '[' and complete events, each with its comma."""
    write_timeline(path, read_timeline(path) if path.exists() and path.stat().st_size else ())
