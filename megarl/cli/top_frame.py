"""What one screen of `megarl top` says, as plain values: nothing here reads a file or knows a terminal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from megarl.telemetry.heartbeat import BEAT_S, IDLE, LOST, Heartbeat, ProcessBeat
from megarl.telemetry.log_warnings import LoggedWarning
from megarl.telemetry.names import PHASES
from megarl.telemetry.run_directory import Standing
from megarl.telemetry.sparkline import Points

Shown = Standing | Literal["waiting", "skipped", "unknown"]
"""How a run stands; or it has not begun, will not begin, or its files do not say."""

States = Mapping[tuple[str, int | None], str]
"""(node, process number) -> "gone", "stopped (by SIGSTOP)"."""

ATTENTION = ("failed", "killed", "unknown")
"""Of these a person should know."""

_SILENT_S = 30.0
"""Workers are asked every 10 s whether they live."""
_HELD_UP_S = 4 * BEAT_S
_SLOW_S, _SLOW_TIMES = 60.0, 5.0
"""What lasts a minute, and this many times as long as the longest of the last steps, is marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric over the steps."""

    label: str
    points: Points
    last: float | None
    """Of the last step; None: that did not log it."""
    decimals: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownProcess:
    """A process of the run, as its driver last said."""

    beat: ProcessBeat
    mark: str = ""
    """Why it looks stuck; nothing where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFrame:
    """One run at one moment."""

    label: str
    """What it is called among others."""
    standing: Shown
    message: str = ""
    """Why it stands so."""
    step: int = 0
    """Finished ones."""
    steps: int | None = None
    """Of the whole run; None: its files do not say."""
    step_s: float | None = None
    """Seconds a step takes, evaluations and checkpoints included: mean of the last ones."""
    left_s: float | None = None
    """Until its last step at that speed; None of what does not run."""
    curves: tuple[Curve, ...] = ()
    tokens_per_s: float | None = None
    phases: tuple[tuple[str, float], ...] = ()
    """(name, seconds a step), in the order of the step: means of the last ones."""
    beat_age_s: float | None = None
    """Since the last heartbeat; None before the first."""
    processes: tuple[ShownProcess, ...] = ()
    warnings: tuple[LoggedWarning, ...] = ()
    """The newest last."""
    checkpoint: str = ""
    restarts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Files that cannot be read, and why."""

    @property
    def doing(self) -> str:
        """What its driver does."""
        return self.processes[0].beat.phase if self.processes and self.standing == "running" else ""

    @property
    def stuck(self) -> bool:
        return any(process.mark for process in self.processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """All that a screen shows."""

    title: str
    at: str
    """The time of day."""
    runs: tuple[RunFrame, ...]
    alone: bool
    """The one run has the whole screen."""


def time_left(*, step: int, steps: int | None, step_s: float | None, since_s: float, standing: Shown) -> float | None:
    """Seconds until the last step; since_s: since the last finished one, what of the next is over by then."""
    if standing != "running" or steps is None or step_s is None or step >= steps:
        return None
    return (steps - step) * step_s - min(since_s, step_s)


_ORDER = (PHASES[0], PHASES[1], "sleep", PHASES[2], PHASES[3], "reset_reference", PHASES[4], "wake")
_BESIDE = ("eval", "checkpoint")
"""Not in the seconds of the step."""
_PART_OF_OTHERS = ("restart", "write")


def seconds_by_phase(means: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """From the means of `timing_s/<name>`: the phases of a step in their order, the rest of it, what comes beside it.

    The parts of a publication are not phases.
    """
    seconds = {
        name.removeprefix("timing_s/"): value
        for name, value in means.items()
        if name.startswith("timing_s/") and not name.startswith("timing_s/publish_")
    }
    whole = seconds.pop("step", None)
    beside = [(name, seconds.pop(name)) for name in _BESIDE if name in seconds]
    for name in _PART_OF_OTHERS:
        seconds.pop(name, None)
    names = sorted(seconds, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    rest = [("other", whole - sum(seconds.values()))] if whole is not None else []
    return tuple(
        (name, value) for name, value in (*((name, seconds[name]) for name in names), *rest, *beside) if value > 0
    )


def mark_processes(
    heartbeat: Heartbeat, *, age_s: float, longest_step_s: float | None, states: States
) -> tuple[ShownProcess, ...]:
    """The processes of a run that runs, each with why it looks stuck.

    age_s: of the heartbeat. longest_step_s: of the last steps; None before the first. states: of those that can be seen
    from here and are not as they should be.
    """
    return tuple(
        ShownProcess(beat=beat, mark=_mark(beat, number == 0, age_s, longest_step_s, states))
        for number, beat in enumerate(heartbeat.processes)
    )


def _mark(beat: ProcessBeat, is_driver: bool, age_s: float, longest_step_s: float | None, states: States) -> str:
    if (state := states.get((beat.node, beat.pid))) is not None:
        return state
    if beat.phase == LOST:
        return "lost"
    if is_driver and age_s > _HELD_UP_S:
        return f"no heartbeat for {age_s:.0f} s"
    if not is_driver and beat.pid is not None and beat.silent_s > _SILENT_S:
        return f"no answer for {beat.silent_s:.0f} s"
    if beat.phase != IDLE and longest_step_s is not None:
        usual = max(_SLOW_S, _SLOW_TIMES * longest_step_s)
        if beat.for_s + age_s > usual:
            return f"longer than {_SLOW_TIMES:g} of its last steps"
    return ""


def count_standings(runs: Iterable[RunFrame]) -> str:
    """ "3 running, 1 failed": those that need looking at first."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.standing] = counts.get(run.standing, 0) + 1
    order = ("running", "failed", "killed", "unknown", "interrupted", "waiting", "skipped", "finished")
    return ", ".join(f"{counts[name]} {name}" for name in order if name in counts)
