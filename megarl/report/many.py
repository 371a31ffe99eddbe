"""The page that compares runs: what differs in their configurations first, then figures with a line per group."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.stored import read_stored
from megarl.report.figure_sets import FigureSection, group_sections
from megarl.report.glossary import terms_of
from megarl.report.groups import Group, group_runs, tabulate_differences
from megarl.report.keys import Entry
from megarl.report.page import DIGITS, THINNING
from megarl.report.page_data import MOST_LINES
from megarl.report.plots import draw_sections
from megarl.report.problems import Problems
from megarl.report.run_data import RunData, read_run
from megarl.report.stored_runs import NOT_STORED, StoredRun, stored_runs
from megarl.report.templates import render_template
from megarl.report.tokens_of_runs import MOST_RUNS, format_group_tokens
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.run_directory import RunDirectory

_INTERVAL = (
    "Runs that differ in train.seed alone are one setting: a thick line is the mean over its n runs at the steps that "
    "all of them have, a band the 95 % interval of that mean over seeds (Student's t, n - 1 degrees of freedom), thin "
    "lines are the single runs. A setting with one run has no band. A band that reaches far beyond the lines is "
    "cut off at the axis: with two seeds it is 9 deviations to either side. The tables have its ends."
)
_LOOKS = "Colours and dash patterns are the same in all figures; of more than 35 settings two may look alike."
_NOT_HELD = (
    f"Where a figure has more than {MOST_LINES} lines, the numbers of single runs are drawn alone; of "
    f"more than {MOST_RUNS} settings it has the tokens of the first ones. The rest is in the runs' own files."
)
_EACH_TEXT = 12
"""Settings whose configurations the page holds whole."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is compared."""

    title: str
    runs: tuple[RunDirectory | StoredRun, ...]
    settings: tuple[str, ...] | None = None
    """Of an ablation, each run's."""
    notes: tuple[str, ...] = ()
    """What is not there that might be, for the page and the person."""


def choose_cells(ablation: AblationDirectory) -> Chosen:
    """The cells of an ablation that have begun. ValueError where its files are damaged."""
    plan = ablation.plan()
    found = [(cell, ablation.run_of(cell)) for cell in plan.cells]
    begun = [(cell, path) for cell, path in found if path is not None]
    missing = [cell.name for cell, path in found if path is None]
    note = f"not begun: {', '.join(missing[:6])}{f' and {len(missing) - 6} more' if len(missing) > 6 else ''}"
    return Chosen(
        title=plan.name,
        runs=tuple(RunDirectory(path) for _, path in begun),
        settings=tuple(cell.setting for cell, _ in begun),
        notes=(note,) if missing else (),
    )


def choose_stored(path: Path) -> Chosen:
    """The runs of a stored table. FileNotFoundError or ValueError where it is none."""
    stored = read_stored(path)
    return Chosen(
        title=stored.facts.name,
        runs=tuple(stored_runs(stored, path)),
        settings=tuple(setting for setting, _ in stored.cells.values()),
        notes=(NOT_STORED, *(f"{cell}: {why}" for cell, why in stored.facts.left_out.items())),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that were read, in groups."""

    chosen: Chosen
    groups: list[Group]
    problems: Problems = field(default_factory=Problems)
    """Of what is drawn of all; a run's own are with it."""

    @property
    def runs(self) -> list[RunData]:
        return [run for group in self.groups for run in group.runs]

    def sections(self) -> list[FigureSection]:
        return group_sections(self.groups, self.problems)

    def problem_lines(self) -> list[str]:
        """What could not be read or drawn so far: some files are read when a figure wants them."""
        found = Problems()
        for run in self.runs:
            for line in run.problems:
                found.add(run.name, line)
        return [*found.lines(), *self.problems.lines()]


def read_comparison(chosen: Chosen) -> Comparison:
    """Every run, without rollouts. ValueError where their verbs differ."""
    runs = [run if isinstance(run, RunData) else read_run(run) for run in chosen.runs]
    verbs = {run.verb: run.name for run in reversed(runs) if run.verb is not None}
    if len(verbs) > 1:
        told = ", ".join(f"{name} is of `megarl {verb}`" for verb, name in sorted(verbs.items()))
        raise ValueError(f"runs of different verbs have no figures in common: {told}; give those of one verb")
    begun = [f"{run.name}: no step has ended yet, so it is in no figure" for run in runs if run.last is None]
    chosen = replace(chosen, notes=(*chosen.notes, *begun))
    return Comparison(chosen=chosen, groups=group_runs(runs, chosen.settings))


def write_comparison(comparison: Comparison, path: Path) -> list[str]:
    """Write the page; returns what could not be read or drawn."""
    sections, numbers = draw_sections(comparison.sections(), comparison.problems)
    groups, runs = comparison.groups, comparison.runs
    differences = tabulate_differences(groups)
    tokens = tokens_problem = None
    with comparison.problems.tolerate("the tokens"):
        tokens, tokens_problem = format_group_tokens(groups, path)
    problems = [*comparison.chosen.notes, *comparison.problem_lines()]
    text = render_template(
        "comparison.html",
        title=comparison.chosen.title,
        summary=_summarise(comparison),
        messages=problems,
        differences=differences,
        nothing_differs=_nothing_differs(groups),
        entries=[_entry(group) for group in groups],
        runs=[
            {
                "name": run.name,
                "setting": group.label,
                "seed": "–" if run.seed is None else run.seed,
                "status": run.status + (f": {run.message}" if run.message else ""),
                "step": run.step,
            }
            for group in groups
            for run in group.runs
        ],
        sections=sections,
        tokens=tokens,
        tokens_problem=tokens_problem,
        json=numbers,
        terms=terms_of({name for run in runs for name in run.columns}),
        notes=[_INTERVAL, THINNING, _LOOKS, DIGITS, _NOT_HELD],
        configurations=_configurations(groups, path),
    )
    write_text_atomically(path, text)
    return problems


def _entry(group: Group) -> Entry:
    number = len(group.runs)
    return Entry(f"{group.label} (n = {number})", group.colour, "line", group.dash, group.index)


def _summarise(comparison: Comparison) -> str:
    runs, groups = comparison.runs, comparison.groups
    steps = sorted({run.step for run in runs})
    told = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    settings = "one setting" if len(groups) == 1 else f"{len(groups)} settings"
    return f"{len(runs)} runs of {settings}, {told} steps each"


def _nothing_differs(groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return "No field but the seed, and where a run writes, differs between these runs."
    return "The settings' configurations are equal, or their config.toml is missing."


def _configurations(groups: Sequence[Group], page: Path) -> list[tuple[str, str]]:
    """(setting, its first run's config.toml); of many settings a word about where they lie."""
    if len(groups) > _EACH_TEXT:
        paths = [run.run.config_path for group in groups for run in group.runs if run.run.config_path.is_file()]
        names = "\n".join(os.path.relpath(path, page.parent) for path in paths)
        return [] if not paths else [(f"of {len(groups)} settings, in their runs' directories", names)]
    found = []
    for group in groups:
        path = group.runs[0].run.config_path
        if path.is_file():
            found.append((group.label, path.read_text(encoding="utf-8", errors="replace")))
    return found
