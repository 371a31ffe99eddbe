"""From groups of runs, or the cells of an ablation, to their numbers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from megarl.ablation.directory import AblationDirectory
from megarl.config.base import ConfigError
from megarl.report.many import Comparison, choose_cells, read_comparison
from megarl.telemetry.run_directory import RunDirectory
from megarl.theory.practice.numbers import Practice, RunNumbers
from megarl.theory.practice.reading import read_numbers

OnRun = Callable[[], None]


def practice_of_ablation(
    ablation: AblationDirectory, on_run: OnRun = lambda: None, *, only: Collection[str] | None = None
) -> Practice:
    """Of every cell that has begun, or of those cells of `only`; the rest is in the notes.

    ConfigError where no cell says anything, ValueError where the ablation's files are damaged.
    """
    plan = ablation.plan()
    chosen = choose_cells(ablation)
    begun = {cell: path.resolve() for cell in plan.cells if (path := ablation.run_of(cell)) is not None}
    if only is not None:
        begun = {cell: path for cell, path in begun.items() if cell.name in only}
        chosen = replace(
            chosen,
            runs=tuple(map(RunDirectory, begun.values())),
            settings=tuple(cell.setting for cell in begun),
            notes=(),
        )
    controls = {one.name: control for one in plan.settings if (control := plan.control_of(one.name)) is not None}
    cells = {path: cell.name for cell, path in begun.items()}
    return collect_practice(read_comparison(chosen), name=plan.name, controls=controls, cells=cells, on_run=on_run)


def collect_practice(
    comparison: Comparison,
    *,
    name: str,
    controls: Mapping[str, str] | None = None,
    cells: Mapping[Path, str] | None = None,
    on_run: OnRun = lambda: None,
) -> Practice:
    """cells: of a run's directory, its cell's name; without, the directory's. on_run: called after each.

    Raises:
        ConfigError: no run has updates or rollouts, so there is nothing to say.
    """
    runs: list[RunNumbers] = []
    notes = list(comparison.chosen.notes)
    for group in comparison.groups:
        for run in group.runs:
            cell = (cells or {}).get(run.run.path.resolve(), run.name)
            if run.last is not None:
                numbers, problems = read_numbers(run, setting=group.label, cell=cell)
                runs.append(numbers)
                notes += [f"{cell}: {problem}" for problem in problems]
                if run.status != "finished":
                    notes.append(f"{cell}: {run.status} after step {run.step}; what it has so far counts")
            on_run()
    if not any(part in ("sign", "prediction", "tokens") for run in runs for part, _, _ in run.values):
        told = "; ".join(notes[:3]) or "no run has a step"
        raise ConfigError(
            "megarl theory: expected runs of `megarl train` with updates.jsonl and rollouts/ "
            f"(logging.rollouts_every, logging.traced_responses), found nothing to compare in them: {told}"
        )
    return Practice(name=name, runs=tuple(runs), controls=controls or {}, notes=tuple(dict.fromkeys(notes)))
