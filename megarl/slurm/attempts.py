"""The attempts of one run, and whether another follows. Pure: what happened is told, what shall happen is returned.

    finished            the run is done
    time limit          asked to save before the time limit: the next attempt follows at once
    stopped             by a person: nothing follows
    refused             the configuration cannot work: nothing follows, however often it is tried
    crashed, unfit      a pause, longer each time, then the next attempt. unfit: nodes did not pass their check, without
                        which it goes on, or Ray did not start over them; the run is not to blame
    lost                nobody could say how it ended (node lost, preempted, requeued): Slurm itself starts the next

An attempt that crashes at the step and in the way of the crash before it is the last: a third would not do better. So
is, of attempts that end by the time limit or are lost, one in a row of those that get no further.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from megarl.telemetry.restarts import fails_alike, pause_after

Ending = Literal["finished", "time limit", "stopped", "refused", "crashed", "unfit", "lost"]
_AT_ONCE_S = 15
"""The job has left its nodes by then; of a time that is over Slurm makes two minutes."""
_MOST_LOST = 5
"""Lost attempts at one step after which no other is made."""
_MOST_SHORT = 2
"""Likewise of those that the time limit ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the job."""

    number: int
    """SLURM_RESTART_COUNT: 0 is the first."""
    job: str
    nodes: str
    began_s: float
    """Since 1970."""
    from_step: int
    """The step after which it goes on; 0: from the beginning."""
    ending: Ending | None = None
    """None: it is running, or was lost."""
    ended_s: float | None = None
    step: int = 0
    """Finished steps when it ended."""
    text: str = ""
    """How it ended, for a person."""
    unfit: tuple[str, ...] = ()
    """Nodes that did not pass the check."""
    verdict: str = ""
    """What followed, for a person."""

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        return cls(**{**facts, "unfit": tuple(facts["unfit"])})

    @property
    def got_further(self) -> bool:
        return self.step > self.from_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows an attempt."""

    action: Literal["done", "requeue", "stop"]
    text: str
    pause_s: int = 0
    avoid: tuple[str, ...] = ()
    """Nodes on which the next attempt shall not run."""


def decide(attempts: Sequence[Attempt], *, restarts: int) -> Verdict:
    """After the last of the attempts, which has an ending. restarts: crashes after which another attempt is made."""
    last = attempts[-1]
    match last.ending:
        case "finished":
            return Verdict(action="done", text="the run is finished")
        case "stopped":
            return Verdict(action="stop", text="it was stopped by a person; sbatch the script again to go on")
        case "refused":
            return Verdict(action="stop", text="the configuration is refused; another attempt would end the same way")
        case "time limit":
            return _after_time_limit(attempts)
        case "crashed" | "unfit":
            return _after_crash(attempts, restarts=restarts)
    raise ValueError(f"attempt {last.number} has no ending to decide by: {last.ending}")


def find_lost(attempts: Sequence[Attempt]) -> str | None:
    """Before a new attempt: why there shall be none, since those before it were lost at one step; None: go on."""
    lost = [attempt for attempt in attempts[-_MOST_LOST:] if attempt.ending is None]
    if len(lost) < _MOST_LOST or len({attempt.from_step for attempt in lost}) > 1:
        return None
    return (
        f"the last {_MOST_LOST} attempts went on after step {lost[0].from_step} and were lost, each with its nodes or "
        "by a requeue, without a newer checkpoint; see their logs, and sbatch the script again when the reason is gone"
    )


def _after_time_limit(attempts: Sequence[Attempt]) -> Verdict:
    row = [each for each in attempts[-_MOST_SHORT:] if each.ending == "time limit" and not each.got_further]
    if len(row) == _MOST_SHORT:
        text = f"{_MOST_SHORT} attempts ended by the time limit without finishing a step; ask for a longer --time"
        return Verdict(action="stop", text=text)
    return Verdict(action="requeue", text="the next attempt goes on", pause_s=_AT_ONCE_S, avoid=_avoided(attempts))


def _after_crash(attempts: Sequence[Attempt], *, restarts: int) -> Verdict:
    last = attempts[-1]
    crashes = [attempt for attempt in attempts if attempt.ending in ("crashed", "unfit")]
    if [each.ending for each in crashes[-2:]] == ["crashed", "crashed"] and fails_alike(crashes[-2], last):
        text = f"step {last.step + 1} failed twice in the same way; another attempt would do the same"
        return Verdict(action="stop", text=text)
    if len(crashes) > restarts:
        return Verdict(action="stop", text=f"{len(crashes)} attempts crashed, of which --restarts allows {restarts}")
    pause_s = round(pause_after(len(crashes)))
    avoid = _avoided(attempts)
    without = f", without {', '.join(avoid)}" if avoid else ""
    text = f"the next attempt begins in {pause_s} s{without} (crash {len(crashes)} of at most {restarts + 1})"
    return Verdict(action="requeue", text=text, pause_s=pause_s, avoid=avoid)


def _avoided(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    return tuple(sorted({node for attempt in attempts for node in attempt.unfit}))
