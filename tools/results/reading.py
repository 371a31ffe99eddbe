"""A stored ablation as the documents read it: a number per seed, paired differences, figures of `megarl report`."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from megarl.ablation.measures import MEASURES, training_measures
from megarl.ablation.seeds import SeedMean, mean_over_seeds, paired_difference
from megarl.ablation.stored import SUFFIX, Facts, StoredAblation, read_stored
from megarl.report.figure import AnyFigure, Values
from megarl.report.figure_sets import group_sections
from megarl.report.groups import Group, group_runs
from megarl.report.problems import Problems
from megarl.report.stored_runs import StoredRun, stored_runs

BySeed = dict[int, float]


class Results:
    """One table of docs/results/tables. KeyError for a setting that is not in it."""

    def __init__(self, stored: StoredAblation, path: Path) -> None:
        self.stored = stored
        self.path = path
        self._figures: dict[tuple[str, ...], dict[str, AnyFigure]] = {}

    @property
    def facts(self) -> Facts:
        return self.stored.facts

    @cached_property
    def runs(self) -> dict[str, dict[int, StoredRun]]:
        """Setting -> seed -> run; a setting without a finished run has none."""
        found: dict[str, dict[int, StoredRun]] = {one.name: {} for one in self.facts.settings}
        cells = self.stored.cells.values()
        for (setting, seed), run in zip(cells, stored_runs(self.stored, self.path), strict=True):
            found[setting][seed] = run
        return found

    def has(self, *settings: str) -> bool:
        """Whether each has a finished run."""
        return all(self.runs.get(one) for one in settings)

    def control_of(self, setting: str) -> str | None:
        return self.stored.setting(setting).control

    def per_seed(self, setting: str, number: Callable[[StoredRun], float | None]) -> BySeed:
        """A number of each run; seeds without one are left out."""
        found = {seed: number(run) for seed, run in self.runs[setting].items()}
        return {seed: value for seed, value in found.items() if value is not None and np.isfinite(value)}

    def measure(self, setting: str, name: str) -> BySeed:
        """Of `megarl.ablation.measures`, by its name there: "entropy_end", "entropy_mean", "reward_end", ..."""
        if name not in {one.name for one in MEASURES}:
            raise KeyError(f"no measure {name!r}; expected one of {', '.join(one.name for one in MEASURES)}")
        return self.per_seed(setting, lambda run: training_measures(_rows(run), run.step).get(name))

    def mean_of(self, setting: str, metric: str) -> BySeed:
        """A metric's mean over the steps."""
        return self.per_seed(setting, lambda run: _mean(run.series(metric)[1]))

    def at_step(self, setting: str, metric: str, step: int) -> BySeed:
        """A metric's value in one step."""

        def number(run: StoredRun) -> float | None:
            steps, values = run.series(metric)
            return dict(zip(steps.tolist(), values.tolist(), strict=True)).get(step)

        return self.per_seed(setting, number)

    def evaluated(self, setting: str, metric: str) -> BySeed:
        """A metric of the last evaluation inside a run: "eval/held_out/mean@8"."""
        return self.per_seed(setting, lambda run: _last(run.series(metric)[1]))

    def updates(self, setting: str, seed: int, metric: str) -> Values:
        """[steps, updates of a step] of a metric of updates.jsonl; NaN where there is none."""
        rows = self.runs[setting][seed].read_updates()
        steps = sorted({row["step"] for row in rows})
        width = 1 + max((row["update"] for row in rows), default=-1)
        found = np.full((len(steps), width), np.nan)
        for row in rows:
            value = row.get(metric)
            found[steps.index(row["step"]), row["update"]] = np.nan if value is None else value
        return found

    def groups(self, settings: Sequence[str]) -> list[Group]:
        """As the figures have them, in this order; those without a finished run are left out."""
        chosen = [(name, run) for name in settings for run in self.runs[name].values()]
        return group_runs([run for _, run in chosen], [name for name, _ in chosen])

    def figure(self, key: str, settings: Sequence[str]) -> AnyFigure:
        """What `megarl report TABLE --figure KEY` draws, of these settings alone. ValueError where there is none."""
        chosen = tuple(settings)
        if chosen not in self._figures:
            problems = Problems()
            sections = group_sections(self.groups(chosen), problems)
            if lines := problems.lines():
                raise ValueError(f"{self.path}: {lines[0]}")
            self._figures[chosen] = {figure.key: figure for section in sections for figure in section.figures}
        if key not in self._figures[chosen]:
            raise ValueError(f"{self.path}: no figure {key!r} of {', '.join(chosen)}; expected metrics that it shows")
        return self._figures[chosen][key]


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> SeedMean | None:
    """First less second over the seeds that both have, with Student's interval; None: they share none."""
    return paired_difference(first, second)


def over_seeds(values: Mapping[int, float]) -> SeedMean | None:
    """None without a seed."""
    return mean_over_seeds(list(values.values())) if values else None


@lru_cache(maxsize=16)
def read_results(tables: Path, name: str) -> Results:
    """FileNotFoundError or ValueError as `read_stored`."""
    path = tables / f"{name}{SUFFIX}"
    return Results(read_stored(path), path)


def _rows(run: StoredRun) -> list[dict[str, float | None]]:
    return [
        {"step": step, **{name: values[index] for name, values in run.columns.items()}}
        for index, step in enumerate(run.steps.tolist())
    ]


def _mean(values: Values) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _last(values: Values) -> float | None:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None
