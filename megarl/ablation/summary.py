"""summary.json: what an ablation says of each setting, and of its difference to the control.

    version, name, control, level      level: of all intervals, 0.95
    is_final                           whether finished runs are compared; false: runs as far as they all are
    steps                              at which they are compared; one number, unless settings differ in length
    left_out                           {cell: why}
    problems                           of cells that are compared: rows or answers that could not be read
    measures                           {name: {title, metric, when}} of those from training, in order
    settings                           one each, in order:
      name, about
      control                          the setting that it is compared with; null for the control, or without one
      planned, seeds                   how many seeds are planned; those that are compared
      measures                         {name: estimate}: `measures` and `eval/<benchmark>/mean@n`, `.../pass@k`
      differences                      {name: estimate}, this less its control; null for the control, or without one
    an estimate: value, half_width, low, high, n
                                       mean over n seeds with Student's interval; null where n is 1
                 problems              of mean@n and pass@k: {low, high, n}, the bootstrap interval over n problems;
                                       null where the cells were not asked alike or their answers are not there

Differences are paired: each is of runs with the same seed, and over problems of the same problem and draws. Every
interval is for itself: of twenty differences that are none, one is expected to exclude 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megarl.ablation.cell_runs import CellRun, Compared, choose_compared
from megarl.ablation.directory import AblationPlan
from megarl.ablation.measures import MEASURES, last_evaluation, training_measures
from megarl.ablation.problem_values import (
    ProblemEstimate,
    ProblemValues,
    estimate_paired,
    estimate_problems,
    read_problem_values,
)
from megarl.ablation.seeds import LEVEL, SeedMean, mean_over_seeds, paired_difference
from megarl.telemetry.run_directory import RunDirectory

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measure of a setting, or of its difference to the control."""

    seeds: SeedMean
    problems: ProblemEstimate | None = None

    def as_json(self) -> dict[str, Any]:
        return self.seeds.as_json() | {"problems": self.problems.as_json() if self.problems else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSummary:
    """What is known of one setting."""

    name: str
    about: str
    control: str | None
    """The setting it is compared with; None: it is the control, or there is none."""
    planned: int
    """Seeds."""
    seeds: tuple[int, ...]
    """Those that are compared."""
    measures: Mapping[str, Measured]
    differences: Mapping[str, Measured] | None
    """To its control, over the seeds that both have; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSummary:
    """See the module."""

    name: str
    control: str | None
    compared: Compared
    settings: tuple[SettingSummary, ...]
    problems: tuple[str, ...]
    """Rows and answers of compared cells that could not be read."""

    @property
    def steps(self) -> list[int]:
        return sorted(set(self.compared.upto.values()))

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "name": self.name,
            "control": self.control,
            "level": LEVEL,
            "is_final": self.compared.is_final,
            "steps": self.steps,
            "left_out": dict(self.compared.left_out),
            "problems": list(self.problems),
            "measures": {
                one.name: {key: value for key, value in asdict(one).items() if key != "name"} for one in MEASURES
            },
            "settings": [_setting_json(one) for one in self.settings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _CellValues:
    """What one compared cell says."""

    seed: int
    values: Mapping[str, float]
    answers: Mapping[str, ProblemValues]
    """By benchmark."""


def summarise_ablation(plan: AblationPlan, cells: Sequence[CellRun]) -> AblationSummary:
    """From the cells as they stand."""
    compared = choose_compared(cells)
    problems: list[str] = []
    by_setting: dict[str, list[_CellValues]] = {one.name: [] for one in plan.settings}
    for cell in cells:
        if (upto := compared.upto.get(cell.cell.name)) is not None:
            problems += [f"{cell.cell.name}: {text}" for text in cell.problems]
            by_setting[cell.cell.setting].append(_read_values(cell, upto, problems))
    settings = [
        SettingSummary(
            name=one.name,
            about=one.about,
            control=plan.control_of(one.name),
            planned=len(plan.cells_of(one.name)),
            seeds=tuple(cell.seed for cell in by_setting[one.name]),
            measures=_measures(by_setting[one.name]),
            differences=None
            if (control := plan.control_of(one.name)) is None
            else _differences(by_setting[one.name], by_setting[control]),
        )
        for one in plan.settings
    ]
    return AblationSummary(
        name=plan.name,
        control=plan.control,
        compared=compared,
        settings=tuple(settings),
        problems=tuple(problems),
    )


def _read_values(one: CellRun, upto: int, problems: list[str]) -> _CellValues:
    """Of a cell with a run; what could not be read is added to `problems`."""
    values = training_measures(one.rows, upto)
    evaluation = last_evaluation(one.rows, upto)
    answers: dict[str, ProblemValues] = {}
    if evaluation is not None and one.run is not None:
        values |= evaluation.values
        answers, unread = read_problem_values(RunDirectory(one.run).evaluations / f"step-{evaluation.step:06d}")
        problems += [f"{one.cell.name}: {text}" for text in unread]
    return _CellValues(seed=one.cell.seed, values=values, answers=answers)


def _measures(cells: Sequence[_CellValues]) -> dict[str, Measured]:
    over_problems: dict[str, ProblemEstimate] = {}
    for benchmark in _benchmarks(cells):
        answers = [cell.answers[benchmark] for cell in cells if benchmark in cell.answers]
        if len(answers) == len(cells):
            over_problems |= estimate_problems(answers)
    found: dict[str, Measured] = {}
    for name in _names(cells):
        seeds = mean_over_seeds([cell.values[name] for cell in cells if name in cell.values])
        found[name] = Measured(seeds=seeds, problems=over_problems.get(name))
    return found


def _differences(cells: Sequence[_CellValues], control: Sequence[_CellValues]) -> dict[str, Measured]:
    others = {cell.seed: cell for cell in control}
    pairs = [(cell, others[cell.seed]) for cell in cells if cell.seed in others]
    over_problems: dict[str, ProblemEstimate] = {}
    for benchmark in _benchmarks(cells):
        asked = [pair for pair in pairs if all(benchmark in one.answers for one in pair)]
        if len(asked) == len(pairs):
            over_problems |= estimate_paired([(one.answers[benchmark], two.answers[benchmark]) for one, two in asked])
    found: dict[str, Measured] = {}
    for name in _names(cells):
        first, second = (
            {cell.seed: cell.values[name] for cell in side if name in cell.values} for side in (cells, control)
        )
        if (seeds := paired_difference(first, second)) is not None:
            found[name] = Measured(seeds=seeds, problems=over_problems.get(name))
    return found


def _names(cells: Sequence[_CellValues]) -> list[str]:
    """Training's in their order, then evaluations'."""
    there = {name for cell in cells for name in cell.values}
    training = [one.name for one in MEASURES]
    return [name for name in training if name in there] + sorted(there - set(training), key=_evaluation_order)


def _evaluation_order(name: str) -> tuple[str, bool, int]:
    benchmark, _, measure = name.rpartition("/")
    kind, _, number = measure.partition("@")
    return benchmark, kind != "mean", int(number)


def _benchmarks(cells: Sequence[_CellValues]) -> list[str]:
    return sorted({benchmark for cell in cells for benchmark in cell.answers})


def _setting_json(one: SettingSummary) -> dict[str, Any]:
    def named(measures: Mapping[str, Measured] | None) -> dict[str, Any] | None:
        return None if measures is None else {name: found.as_json() for name, found in measures.items()}

    return {
        "name": one.name,
        "about": one.about,
        "control": one.control,
        "planned": one.planned,
        "seeds": list(one.seeds),
        "measures": named(one.measures),
        "differences": named(one.differences),
    }
