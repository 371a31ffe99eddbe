"""mean@n and pass@k by problem, from the answers that evaluations inside the runs have kept: intervals over problems.

Every seed of every setting is asked the same problems, each sample with a seed of its own (`eval.seed`), so values of
one problem are averaged over a setting's seeds, and settings are compared problem by problem. That interval says how
the number would move with other problems, for these runs; the one over seeds, with other runs, for these problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.ablation.measures import is_answers_measure
from megarl.evaluation.answers import find_other_settings
from megarl.evaluation.estimators import mean_at_k, pass_at_k, powers_of_two
from megarl.evaluation.intervals import Estimate, estimate, estimate_difference
from megarl.evaluation.summary import Answers
from megarl.telemetry.names import evaluation_name

Floats = NDArray[np.float64]

_OF_THE_MODEL = ("model",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemValues:
    """One benchmark of one run."""

    settings: Mapping[str, Any]
    """What determines the answers, the problems included."""
    names: tuple[str, ...]
    values_PM: Floats
    """[problems, measures]"""

    def asked_as(self, other: "ProblemValues") -> bool:
        """Whether both were asked the same problems, in the same way, with the same draws."""
        return self.names == other.names and not find_other_settings(self.settings, other.settings, but=_OF_THE_MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemEstimate:
    """A number with its interval over problems."""

    low: float
    high: float
    problems: int

    def as_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "n": self.problems}


def read_problem_values(directory: Path) -> tuple[dict[str, ProblemValues], list[str]]:
    """(of every benchmark whose answers are in RUN/eval/step-N, what could not be read)."""
    found, problems = {}, []
    for path in sorted(directory.glob("*.parquet")):
        try:
            answers = Answers.read(path)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of the first two
            problems.append(f"{path.name} in {directory.name}: {error}")
            continue
        found[answers.name] = _values(answers)
    return found, problems


def estimate_problems(cells: Sequence[ProblemValues]) -> dict[str, ProblemEstimate]:
    """Of one setting, averaged over its cells; empty where they were not asked alike."""
    if not cells or not all(one.asked_as(cells[0]) for one in cells):
        return {}
    return _named(cells[0], estimate(_average(cells)))


def estimate_paired(pairs: Sequence[tuple[ProblemValues, ProblemValues]]) -> dict[str, ProblemEstimate]:
    """Of the first less the second of every pair, which share a seed; empty where not all were asked alike."""
    everyone = [one for pair in pairs for one in pair]
    if not everyone or not all(one.asked_as(everyone[0]) for one in everyone):
        return {}
    first, second = (_average([pair[side] for pair in pairs]) for side in (0, 1))
    return _named(everyone[0], estimate_difference(first, second))


def _values(answers: Answers) -> ProblemValues:
    ks = [k for k in powers_of_two(answers.samples) if k > 1]
    columns = [mean_at_k(answers.correct_PN)[:, None], pass_at_k(answers.correct_PN)[:, [k - 1 for k in ks]]]
    names = [evaluation_name(answers.name, one) for one in (f"mean@{answers.samples}", *(f"pass@{k}" for k in ks))]
    assert all(map(is_answers_measure, names))
    return ProblemValues(settings=answers.settings, names=tuple(names), values_PM=np.hstack(columns))


def _average(cells: Sequence[ProblemValues]) -> Floats:
    return np.asarray(np.mean([one.values_PM for one in cells], axis=0))


def _named(of: ProblemValues, estimates: Sequence[Estimate]) -> dict[str, ProblemEstimate]:
    problems = len(of.values_PM)
    pairs = zip(of.names, estimates, strict=True)
    return {name: ProblemEstimate(low=one.low, high=one.high, problems=problems) for name, one in pairs}
