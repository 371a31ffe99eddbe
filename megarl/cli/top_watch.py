"""A run's files as `megarl top` looks at them again and again: what has not changed is not read again, and a file that
is being replaced, half written or gone costs a line on the screen, not the screen."""

import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from megarl.cli.run_facts import Saved, describe_restarts, find_saved
from megarl.cli.top_frame import (
    Curve,
    RunFrame,
    Shown,
    ShownProcess,
    States,
    mark_processes,
    seconds_by_phase,
    time_left,
)
from megarl.telemetry.heartbeat import Heartbeat, read_heartbeat
from megarl.telemetry.log_warnings import LogWarnings
from megarl.telemetry.metric_history import MetricHistory
from megarl.telemetry.process_mark import ProcessMark, process_state
from megarl.telemetry.run_directory import RunDirectory, RunState, judge_state

T = TypeVar("T")

CURVES: tuple[tuple[str, str, float, int], ...] = (
    ("reward/mean", "reward", 1.0, 3),
    ("sft/loss", "loss", 1.0, 4),
    ("actor/entropy", "entropy", 1.0, 3),
    ("clip_ratio/low_mean", "clip low %", 100.0, 3),
    ("clip_ratio/high_mean", "clip high %", 100.0, 3),
    ("clip_ratio/dual_mean", "clip dual %", 100.0, 3),
    ("response_length/mean", "response", 1.0, 1),
    ("actor/grad_norm", "grad norm", 1.0, 3),
)
"""(metric, label, factor, decimals) of what is drawn, the most important first."""

_PARTS_OF_A_STEP = ("timing_s/step", "timing_s/eval", "timing_s/checkpoint")
"""What the time from one step to the next is made of."""
_WARNINGS = 20


class Changed(Generic[T]):
    """A file, or the list of a directory, that is read only when it is another than before."""

    def __init__(self, path: Path, read: Callable[[], T]) -> None:
        self._path, self._read = path, read
        self._seen: tuple[int, int, int] | None = None
        self._value: T | None = None

    def look(self) -> T | None:
        """None where there is nothing. Raises what reading does; the next call then reads again."""
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            self._seen = self._value = None
            return None
        seen = facts.st_ino, facts.st_size, facts.st_mtime_ns
        if seen != self._seen:
            self._seen = None
            self._value = self._read()
            self._seen = seen
        return self._value


class RunWatch:
    """One run, over time."""

    def __init__(self, run: RunDirectory, label: str, *, alone: bool) -> None:
        """alone: it has the screen for itself, so its processes, checkpoint and logs are looked at too."""
        self._run, self._label, self._alone = run, label, alone
        names = [name for name, *_ in CURVES]
        depth = {"at_once_bytes": 1 << 20, "samples": 256} if alone else {"at_once_bytes": 1 << 17, "samples": 48}
        self._metrics = MetricHistory(run.metrics_path, names, **depth)
        self._state = Changed(run.state_path, lambda: (run.read_state(), run.driver()))
        self._heartbeat = Changed(run.heartbeat_path, lambda: read_heartbeat(run.heartbeat_path))
        self._config = Changed(run.config_path, lambda: _read_steps(run))
        self._saved = Changed(run.checkpoints, lambda: find_saved(run, warn=False))
        self._warnings = LogWarnings(run.logs)
        self._problems: list[str] = []

    def look(self) -> RunFrame:
        """How the run stands now. Never raises for what its files hold."""
        self._problems = []
        now_s = time.time()
        standing, message, state, driver = self._look_at_state(now_s)
        heartbeat = None
        with self._tolerate():
            heartbeat = self._heartbeat.look()
        with self._tolerate():
            self._metrics.refresh()
        last = self._metrics.last
        step = max(state.step if state else 0, int(last.get("step") or 0))
        steps = heartbeat.steps if heartbeat and heartbeat.steps else None
        with self._tolerate():
            steps = steps or self._config.look()
        seconds = self._seconds()
        step_s = sum(seconds.get(name, 0.0) for name in _PARTS_OF_A_STEP) if seconds else None
        since_s = max(0.0, now_s - (last.get("timestamp") or now_s))
        frame = RunFrame(
            label=self._label,
            standing=standing,
            message=message,
            step=step,
            steps=steps,
            step_s=step_s,
            left_s=time_left(step=step, steps=steps, step_s=step_s, since_s=since_s, standing=standing),
            curves=tuple(self._curves()),
            tokens_per_s=last.get("perf/tokens_per_s"),
            beat_age_s=heartbeat.age_s(now_s=now_s) if heartbeat else None,
            processes=self._processes(heartbeat, standing, state, driver, now_s),
        )
        if self._alone:
            frame = self._look_closer(frame, seconds, now_s)
        return replace(frame, problems=tuple(self._problems))

    def _look_at_state(self, now_s: float) -> tuple[Shown, str, RunState | None, ProcessMark | None]:
        with self._tolerate():
            found = self._state.look()
            if found is None:
                return "unknown", f"{self._run.state_path.name} is gone", None, None
            age_s = max(0.0, now_s - self._run.state_path.stat().st_mtime)
            standing, message = judge_state(*found, age_s=age_s)
            return standing, message or "", *found
        return "unknown", "", None, None

    def _look_closer(self, frame: RunFrame, seconds: dict[str, float], now_s: float) -> RunFrame:
        saved: Saved | None = None
        restarts: list[str] = []
        with self._tolerate():
            saved = self._saved.look()
        with self._tolerate():
            restarts = describe_restarts(self._run.restarts_path, now_s=now_s)
        with self._tolerate():
            self._warnings.refresh()
        return replace(
            frame,
            phases=seconds_by_phase(seconds),
            warnings=tuple(self._warnings.last(_WARNINGS)),
            checkpoint=saved.describe(now_s=now_s) if saved else "none",
            restarts=tuple(restarts),
        )

    def _seconds(self) -> dict[str, float]:
        """`timing_s/` of the last steps, means over them all: an evaluation after every tenth takes a tenth of its
        seconds a step."""
        rows = [row for row in self._metrics.recent if row.get("timing_s/step") is not None]
        names = {name for row in rows for name in row if name.startswith("timing_s/")}
        return {name: sum(row.get(name) or 0.0 for row in rows) / len(rows) for name in names}

    def _curves(self) -> Iterator[Curve]:
        for name, label, factor, decimals in CURVES:
            points = self._metrics.curve(name)
            if points:
                last = self._metrics.last.get(name)
                yield Curve(
                    label=label,
                    points=tuple((step, factor * value) for step, value in points),
                    last=None if last is None else factor * last,
                    decimals=decimals,
                )

    def _processes(
        self,
        heartbeat: Heartbeat | None,
        standing: Shown,
        state: RunState | None,
        driver: ProcessMark | None,
        now_s: float,
    ) -> tuple[ShownProcess, ...]:
        if heartbeat is None:
            return ()
        pausing = state is not None and state.goes_on_s is not None
        if standing != "running" or pausing:  # what is written is of before
            return tuple(ShownProcess(beat=beat) for beat in heartbeat.processes)
        longest_s = max((row.get("timing_s/step") or 0.0 for row in self._metrics.recent), default=None)
        states = _unusual_states(heartbeat, driver)
        return mark_processes(heartbeat, age_s=heartbeat.age_s(now_s=now_s), longest_step_s=longest_s, states=states)

    @contextmanager
    def _tolerate(self) -> Iterator[None]:
        """A file that cannot be read, or holds something else, becomes a line. What is just being replaced or removed
        is there again, or known to be gone, at the next look."""
        try:
            yield
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._problems.append(str(error).partition("\n")[0] or type(error).__name__)


def _unusual_states(heartbeat: Heartbeat, driver: ProcessMark | None) -> States:
    """Which of the processes on this machine are stopped or gone."""
    if driver is None or driver.standing() == "elsewhere":
        return {}
    here = [beat.pid for beat in heartbeat.processes if beat.pid is not None and beat.node == driver.host]
    states = {(driver.host, pid): process_state(pid) for pid in here}
    return {place: state for place, state in states.items() if state.startswith(("gone", "stopped"))}


def _read_steps(run: RunDirectory) -> int | None:
    """Of the whole run, from its configuration alone, which may be that of another version."""
    table = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
    section = "sft" if run.read_versions().get("verb") == "sft" else "train"
    steps = table.get(section, {}).get("steps")
    return int(steps) if isinstance(steps, int) else None
