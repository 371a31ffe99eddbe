"""What an ablation will take before its first cell: room on the disk, and hours.

Room: exports and checkpoints are known to the byte, rollouts at most (`config.rollout_files`); logs, answers to
benchmarks and reports are small beside them and not counted. Nothing is removed when a cell ends, so cells add up.
Hours: only from what was measured, in an earlier run of the same shape or in the first steps of this ablation.
"""

import heapq
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megarl.config.rollout_files import run_bytes
from megarl.config.run import RunConfig

GB = 10**9
_FEWEST_STEPS = 2
"""Measured from one row to the next; the first step of a run is longer than others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRoom:
    """Bytes that runs leave on the disk."""

    exports: int = 0
    checkpoints: int = 0
    """Those that are there when a run has ended."""
    writing: int = 0
    """More while it runs: the checkpoint that is written before an older one goes."""
    rollouts: int = 0
    """At most: as if every response were as long as it may be."""

    @property
    def certain(self) -> int:
        return self.exports + self.checkpoints + self.writing

    @property
    def most(self) -> int:
        return self.certain + self.rollouts

    def __add__(self, other: "CellRoom") -> "CellRoom":
        return CellRoom(
            exports=self.exports + other.exports,
            checkpoints=self.checkpoints + other.checkpoints,
            writing=self.writing + other.writing,
            rollouts=self.rollouts + other.rollouts,
        )


def cell_room(config: RunConfig, *, weights_bytes: int, left_bytes: int, most_bytes: int) -> CellRoom:
    """Of one run. weights_bytes: of one export; left_bytes, most_bytes: of the checkpoints that are there when it has
    ended, and while it runs."""
    exports = count_due(config.train.steps, config.train.export_every)
    return CellRoom(
        exports=exports * weights_bytes,
        checkpoints=left_bytes,
        writing=most_bytes - left_bytes,
        rollouts=run_bytes(config),
    )


def count_due(steps: int, every: int) -> int:
    """How often something is done in a run that is due every so many steps, and after the last; every 0: only then."""
    return -(-steps // every) if every else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that a run takes, measured."""

    start_s: float
    """Until its first step begins, an evaluation before it included."""
    step_s: float
    eval_s: float
    """Of an evaluation between two steps; 0 where there was none."""
    steps: int
    """Measured."""
    source: str
    """The run that it was measured in."""

    def seconds(self, config: RunConfig, *, done: int | None = None) -> float:
        """Of a run of this shape. done: steps it has made already; None: it has not begun."""
        left = config.train.steps - (done or 0)
        every = config.eval.every_steps
        evaluations = count_due(config.train.steps, every) - (done or 0) // every if every else 0
        return (self.start_s if done is None else 0.0) + max(0, left) * self.step_s + evaluations * self.eval_s


def measure_pace(rows: Sequence[Mapping[str, float | None]], *, started_s: float, source: str) -> Pace | None:
    """From the rows of a metrics.jsonl, by step; None: too few. started_s: when the run did, since 1970.

    Rows are stamped when all of a step is done, so what lies between two includes what no step counts as its own. The
    medians: a run that was stopped and went on has a night between two steps.
    """
    if not rows or any(row.get("timestamp") is None for row in rows):
        return None
    first = rows[0]
    own = _number(first, "timing_s/step") if _number(first, "step") else 0.0
    pairs = [(before, row) for before, row in itertools.pairwise(rows) if _number(before, "step") >= 1]
    gaps = [(_number(row, "timestamp") - _number(before, "timestamp"), _evaluates(row)) for before, row in pairs]
    plain = [seconds for seconds, evaluates in gaps if not evaluates]
    if len(plain) < _FEWEST_STEPS:
        return None
    step_s = statistics.median(plain)
    evaluating = [seconds - step_s for seconds, evaluates in gaps if evaluates]
    return Pace(
        start_s=max(0.0, _number(first, "timestamp") - own - started_s),
        step_s=step_s,
        eval_s=max(0.0, statistics.median(evaluating)) if evaluating else 0.0,
        steps=len(plain),
        source=source,
    )


def shape_of(config: RunConfig, model: object) -> dict[str, Any]:
    """What the seconds of a step depend on: runs with equal shapes on equal machines take about as long.

    model: equal for models of equal sizes, wherever they lie.
    """
    train, rollout = config.train, config.rollout
    return {
        "model": (model, config.model.dtype),
        "parallel": config.parallel.model_dump(),
        "tokens_per_micro_batch": config.policy.tokens_per_micro_batch,
        "recompute": config.policy.recompute,
        "batch": (train.prompts_per_step, train.samples_per_prompt, train.mini_batch_responses),
        "lengths": (rollout.max_prompt_tokens, rollout.max_response_tokens),
        "engines": (rollout.engines, rollout.tensor),
        "cluster": (config.cluster.nodes, config.cluster.gpus_per_node, config.cluster.colocate),
        "sampler": config.objective.sampler.kind,
        "passes": (config.objective.needs_survey, config.objective.auxiliary.reads("reference")),
        "evaluates": config.eval.every_steps > 0,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CellToRun:
    """A cell that is not finished."""

    name: str
    config: RunConfig
    room: CellRoom
    done: int | None = None
    """Steps that it has made; None: it has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of all cells that are to run."""

    cells: int
    room: CellRoom
    free_bytes: int
    seconds: float | None
    """Until the last cell ends; None: not known before a first cell has made its first steps."""
    at_once: int
    paces: tuple[Pace, ...]
    """What the seconds come from."""
    unknown: tuple[str, ...]
    """Cells for whose shape nothing was measured."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be begun; None: the disk has room for all that is certain."""
        if self.room.certain <= self.free_bytes:
            return None
        needed, free = describe_bytes(self.room.certain), describe_bytes(self.free_bytes)
        return (
            f"exports and checkpoints of all {self.cells} runs take {needed}, but the disk has {free} free; free "
            "space, set output to a directory with more, or save less (train.export_every, checkpoint.keep_last, "
            "checkpoint.every_steps)"
        )

    @property
    def warning(self) -> str | None:
        """What may go wrong all the same."""
        if self.problem or self.room.most <= self.free_bytes:
            return None
        most, free = describe_bytes(self.room.most), describe_bytes(self.free_bytes)
        return (
            f"with rollouts the runs take up to {most}, and the disk has {free} free: if every response were as "
            "long as it may be it would fill; logging.rollouts_every says how often they are written"
        )


def estimate_ablation(
    cells: Sequence[CellToRun], pace_of: Mapping[str, Pace], *, at_once: int, free_bytes: int
) -> Estimate:
    """pace_of: by cell's name, where something of its shape was measured."""
    writing = heapq.nlargest(at_once, (one.room.writing for one in cells))
    room = replace(sum((one.room for one in cells), CellRoom()), writing=sum(writing))
    unknown = tuple(one.name for one in cells if one.name not in pace_of)
    seconds = [pace_of[one.name].seconds(one.config, done=one.done) for one in cells if one.name in pace_of]
    return Estimate(
        cells=len(cells),
        room=room,
        free_bytes=free_bytes,
        seconds=None if unknown else makespan(seconds, at_once),
        at_once=at_once,
        paces=tuple({pace_of[one.name]: None for one in cells if one.name in pace_of}),
        unknown=unknown,
    )


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Until the last of several ends that are begun in order, so many at a time."""
    ends = [0.0] * at_once
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def describe_bytes(count: int) -> str:
    """In powers of ten, as disks are sold: "36.1 MB", "12.3 GB", "1,480 GB"."""
    if count < GB:
        return f"{count / 1e6:.3g} MB"
    size = count / GB
    return f"{size:,.0f} GB" if size >= 100 else f"{size:.3g} GB"


def _evaluates(row: Mapping[str, float | None]) -> bool:
    return any(name.startswith("eval/") for name in row)


def _number(row: Mapping[str, float | None], name: str) -> float:
    return row.get(name) or 0.0
