"""Cells with runs on disk, whose numbers are known: for tests of what is made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, Setting
from megarl.telemetry.run_directory import RunDirectory, RunState, RunStatus
from megarl.telemetry.sinks import JsonlSink
from tests.ablation.directories import begin_run, make_directory
from tests.evaluation.answers import write_answers

Curve = Sequence[float]
"""A number per step, from step 1."""


def make_ablation(
    parent: Path,
    settings: Sequence[str],
    seeds: Sequence[int] = (0, 1),
    control: str | None = None,
    controls: Mapping[str, str] = {},
) -> AblationDirectory:
    """No cell has begun. controls: of settings that have one of their own."""
    cells = [
        Cell(index=at, name=f"{name}-seed{seed}", setting=name, seed=seed, run=f"cells/{name}-seed{seed}")
        for at, (name, seed) in enumerate((name, seed) for name in settings for seed in seeds)
    ]
    of_plan = tuple(Setting(name=name, about=f"it is {name}", control=controls.get(name)) for name in settings)
    return make_directory(parent, AblationPlan(name="clip", settings=of_plan, cells=tuple(cells), control=control))


def cell_of(directory: AblationDirectory, name: str) -> Cell:
    (found,) = (cell for cell in directory.plan().cells if cell.name == name)
    return found


def add_run(
    directory: AblationDirectory,
    name: str,
    curves: Mapping[str, Curve],
    *,
    status: RunStatus = "finished",
    message: str | None = None,
    start: Mapping[str, float] | None = None,
) -> RunDirectory:
    """Of a cell by its name: a row of metrics per step, and of step 0 where `start` has something."""
    (steps,) = {len(curve) for curve in curves.values()}
    run = begin_run(directory, cell_of(directory, name), RunState(status=status, step=steps, message=message))
    sink = JsonlSink(run.metrics_path)
    if start:
        sink.log(0, start)
    for step in range(1, steps + 1):
        sink.log(step, {metric: curve[step - 1] for metric, curve in curves.items()})
    sink.close()
    return run


def add_evaluation(run: RunDirectory, step: int, rows: Sequence[str], *, name: str = "sums", seed: int = 0) -> None:
    """Answers after a step: a row of letters per problem, "x" is right; its numbers go into metrics.jsonl by hand."""
    directory = run.evaluations / f"step-{step:06d}"
    directory.mkdir(parents=True, exist_ok=True)
    write_answers(directory, rows, name=name, model=f"run, step {step}", samples=len(rows[0]), seed=seed)
