"""Memory of a run: what was measured in each phase of its steps beside what was planned, and what stays over the steps.

The plan comes from outside, in plain numbers. On GPUs both are of a GPU, the fullest of all steps and ranks; on a CPU
they are of the largest process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from megarl.report.figure import Line, LineFigure, PairFigure, PairRow, finite
from megarl.report.run_data import RunData
from megarl.telemetry.names import MEMORY_PHASES, memory_name

_ORDER = ("generate", "sleep", "score", "update", "wake", "publish")
"""Of the phases in a step."""
_COLOURS = {"policy": "blue", "engine": "sky"}
_GPU = "memory/gpu_gib"
_ASLEEP = "memory/asleep_max_gib"
_NOT_RECORDED = "This run was recorded without its memory by phase, so there is nothing to draw beside the plan."
_ON_CPU = (
    "This run was on a CPU, and megarl plan plans for GPUs. Compared is one process of the policy and one of an "
    "engine: measured is its resident set, with Python, the libraries and the shared pages by which weights are "
    "published; planned are the tensors that the plan counts and the engine's KV cache, without the context that it "
    "assumes of CUDA. Nothing moves to host memory here, and an engine cannot sleep."
)


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """Of the fullest GPU, on a CPU of the largest process of each role; GiB."""

    name: str
    policy: float
    engine: float


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """The plan of a run, phase by phase."""

    phases: tuple[PlannedPhase, ...] = ()
    problem: str = ""
    """Why there is none."""

    def of(self, phase: str) -> PlannedPhase:
        """NaN where it is not planned."""
        unknown = PlannedPhase(name=phase, policy=math.nan, engine=math.nan)
        return next((planned for planned in self.phases if planned.name == phase), unknown)


Planner = Callable[[float | None], PlannedMemory]
"""The plan for GPUs of so many GiB; None: on a CPU."""


def no_plan(_: float | None) -> PlannedMemory:
    """Where nobody plans."""
    return PlannedMemory(problem="none was made")


def memory_figures(run: RunData, planner: Planner) -> tuple[list[PairFigure | LineFigure], str]:
    """(figures, what is to be said of them) of a run of `megarl train`; of any other there is neither."""
    if run.verb not in ("train", None) or run.last is None:
        return [], ""
    if not any(_measured(run, role, kind="max") or _measured(run, role, kind="gpu_max") for role in MEMORY_PHASES):
        return [], _NOT_RECORDED
    gpu_gib = float(finite(run.columns[_GPU]).min()) if _GPU in run else None
    plan = planner(gpu_gib)
    notes = [_ON_CPU] if gpu_gib is None else []
    if plan.problem:
        notes.append(f"There is no plan beside it: {plan.problem}.")
    if gpu_gib is not None and _shares(run):
        rows = _shared_rows(run, plan)
    else:
        rows = list(chain.from_iterable(_role_rows(run, role, plan, gpu_gib) for role in MEMORY_PHASES))
    residual = _residual_figure(run)
    return [_phase_figure(rows, gpu_gib), *([residual] if residual else [])], " ".join(notes)


def _shares(run: RunData) -> bool:
    return bool(run.config.get("cluster", {}).get("colocate"))


def _measured(run: RunData, role: str, *, kind: str) -> dict[str, float]:
    """By phase the largest of all steps; only what was logged."""
    names = {phase: memory_name(role, phase, kind) for phase in _ORDER if phase in MEMORY_PHASES[role]}
    return {phase: float(finite(run.columns[name]).max()) for phase, name in names.items() if name in run}


def _shared_rows(run: RunData, plan: PlannedMemory) -> list[PairRow]:
    """Of GPUs that policy and engines share: in a phase what the fullest had, whoever saw it."""
    seen = [_measured(run, role, kind="gpu_max") for role in MEMORY_PHASES]
    rows = []
    for phase in _ORDER:
        measured = [by_phase[phase] for by_phase in seen if phase in by_phase]
        planned = plan.of(phase)
        if measured or not math.isnan(planned.policy):
            most = max(measured, default=math.nan)
            rows.append(PairRow(label=phase, planned=(planned.policy, planned.engine), measured=most))
    return rows


def _role_rows(run: RunData, role: str, plan: PlannedMemory, gpu_gib: float | None) -> list[PairRow]:
    """Of a role's own GPUs, or processes."""
    rows = []
    for phase, measured in _measured(run, role, kind="max" if gpu_gib is None else "gpu_max").items():
        planned = plan.of(phase)
        sizes = (planned.policy, 0.0) if role == "policy" else (0.0, planned.engine)
        rows.append(PairRow(label=f"{role} {phase}", planned=sizes, measured=measured))
    return rows


def _phase_figure(rows: Sequence[PairRow], gpu_gib: float | None) -> PairFigure:
    where = "the largest process" if gpu_gib is None else "the fullest GPU"
    return PairFigure(
        key="memory_by_phase",
        title="Memory by phase of a step",
        subtitle=f"most at once in {where}, of all steps; planned above, measured below",
        x_title="GiB",
        y_title="",
        parts=tuple((f"planned: {role}", colour) for role, colour in _COLOURS.items()),
        measured=("measured", "vermilion"),
        rows=tuple(rows),
        limit=None if gpu_gib is None else ("memory of the GPU", gpu_gib),
    )


def _residual_figure(run: RunData) -> LineFigure | None:
    """What is still there when a phase is over, which must not grow: on shared GPUs of the engine that sleeps."""
    if _ASLEEP in run:
        lines = [_line(run, _ASLEEP, "engine, asleep", "sky"), *_allowed(run)]
        subtitle = "what the engine that keeps most of a GPU has of it while it sleeps"
    else:
        names = {role: memory_name(role, "generate", "end") for role in MEMORY_PHASES}
        lines = [
            _line(run, name, f"{role}, after phase generate", _COLOURS[role])
            for role, name in names.items()
            if name in run
        ]
        subtitle = "what the largest process keeps when a phase is over; upwards all the time: a leak"
    if not lines:
        return None
    return LineFigure(
        key="memory_residual",
        title="Memory that stays",
        subtitle=subtitle,
        x_title="step",
        y_title="GiB",
        lines=tuple(lines),
    )


def _line(run: RunData, name: str, label: str, colour: str) -> Line:
    steps, values = run.series(name)
    return Line(label=label, x=steps, y=values, colour=colour)


def _allowed(run: RunData) -> list[Line]:
    limit = run.config.get("rollout", {}).get("asleep_gib")
    if limit is None:
        return []
    ends = np.unique(run.series(_ASLEEP)[0][[0, -1]])
    label = f"allowed (rollout.asleep_gib): {limit:g}"
    return [Line(label=label, x=ends, y=np.full(len(ends), float(limit)), colour="ink", dash=1)]
