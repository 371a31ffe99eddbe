"""Histograms over the traced tokens of rollouts/*.parquet: the update's ratio, and the advantage.

All steps count alike that are read; of a run with many files some are, evenly from the first to the last, and the
figure says how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from megarl.report.figure import Line, LineFigure, Values, finite
from megarl.report.groups import Group
from megarl.report.problems import Problems
from megarl.telemetry.rollouts import iterate_batches

MOST_FILES = 240
"""Of all runs together; of each at least `_FEWEST`."""
_FEWEST = 4
_RATIO_BINS, _ADVANTAGE_BINS = 60, 24
_WIDEST = 8.0
"""Ratios beyond this, or its inverse, are in the last bins."""


@dataclass(frozen=True, kw_only=True)
class TracedTokens:
    """What was traced of a group."""

    ratio: Values
    advantage: Values
    num_files: int
    num_of: int
    """Files that the runs have."""


def read_traced(groups: Sequence[Group], problems: Problems) -> list[TracedTokens]:
    """Of every group, in order; what cannot be read is left out and said."""
    num_runs = sum(len(group.runs) for group in groups)
    return [_read_group(group, max(_FEWEST, MOST_FILES // num_runs), problems) for group in groups]


def _read_group(group: Group, at_most: int, problems: Problems) -> TracedTokens:
    ratios, advantages = [np.empty(0)], [np.empty(0)]
    num_files = num_of = 0
    unread: list[str] = []
    for run in group.runs:
        paths = sorted(run.run.rollouts.glob("step-*.parquet"))
        chosen = _evenly(paths, at_most)
        num_of += len(paths)
        for path in chosen:
            try:
                batches = list(iterate_batches(path, ["ratio", "token_advantage"]))
            except (ValueError, OSError) as error:
                unread.append(f"{run.name}/rollouts/{path.name} cannot be read: {str(error).splitlines()[0]}")
                continue
            for batch in batches:
                traced = batch.filter(pc.is_valid(batch["ratio"]))
                ratios.append(traced["ratio"].flatten().to_numpy().astype(np.float64))
                advantages.append(traced["token_advantage"].flatten().to_numpy().astype(np.float64))
            num_files += 1
    if unread:
        rest = f"; and {len(unread) - 1} more files" if len(unread) > 1 else ""
        problems.add(f"the histograms of {group.label}", f"{unread[0]}{rest}")
    return TracedTokens(
        ratio=np.concatenate(ratios), advantage=np.concatenate(advantages), num_files=num_files, num_of=num_of
    )


def _evenly(paths: Sequence[Path], at_most: int) -> list[Path]:
    if len(paths) <= at_most:
        return list(paths)
    return [paths[round(index)] for index in np.linspace(0, len(paths) - 1, at_most)]


def histogram_figures(groups: Sequence[Group], traced: Sequence[TracedTokens]) -> list[LineFigure]:
    """Ratios of A > 0 and of A < 0, and advantages: shares of the traced tokens on a logarithmic axis."""
    files = sum(one.num_files for one in traced)
    note = f"traced tokens of {files:,} of {sum(one.num_of for one in traced):,} rollout files"
    figures: list[LineFigure] = []
    for key, sign, title in (("ratio_positive", 1, "Ratio where A > 0"), ("ratio_negative", -1, "Ratio where A < 0")):
        samples = [_ratios(one, sign) for one in traced]
        figures += _histogram(groups, samples, _Names(key, title, f"{_WHEN}; {note}", "r, logarithmic"), log=True)
    advantages = [one.advantage for one in traced]
    return figures + _histogram(groups, advantages, _Names("advantages", "Advantages", f"per token; {note}", "A"))


def run_histograms(run: Group, traced: TracedTokens) -> list[LineFigure]:
    """Of one run: the ratios of both signs of the advantage in one figure, and the advantages."""
    samples = [_ratios(traced, sign) for sign in (1, -1)]
    edges = _edges(samples, log=True)
    note = f"traced tokens of {traced.num_files:,} of {traced.num_of:,} rollout files"
    names = _Names("ratios", "Ratios", f"{_WHEN}; {note}", "r, logarithmic")
    lines = [
        Line(label=label, x=edges, y=_shares(sample, edges), colour=colour, dash=dash)
        for sample, label, colour, dash in zip(samples, ("A > 0", "A < 0"), ("vermilion", "blue"), (0, 1), strict=True)
        if len(sample)
    ]
    ratios = [_figure(names, lines, log=True)] if lines else []
    advantages = _Names("advantages", "Advantages", f"per token; {note}", "A")
    return ratios + _histogram([run], [traced.advantage], advantages)


_WHEN = "under the weights that each update began with"


@dataclass(frozen=True)
class _Names:
    key: str
    title: str
    subtitle: str
    x_title: str


def _ratios(traced: TracedTokens, sign: int) -> Values:
    return np.clip(traced.ratio[sign * traced.advantage > 0], 1 / _WIDEST, _WIDEST)


def _histogram(
    groups: Sequence[Group], samples: Sequence[Values], names: _Names, *, log: bool = False
) -> list[LineFigure]:
    """None of it where no sample has a value."""
    edges = _edges(samples, log=log)
    lines = [
        Line(
            label=f"{group.label}: {len(sample):,} tokens",
            x=edges,
            y=_shares(sample, edges),
            colour=group.colour,
            dash=group.dash,
            group=group.index,
        )
        for group, sample in zip(groups, samples, strict=True)
        if len(sample)
    ]
    return [_figure(names, lines, log=log)] if lines else []


def _figure(names: _Names, lines: Sequence[Line], *, log: bool) -> LineFigure:
    return LineFigure(
        key=names.key,
        title=names.title,
        subtitle=names.subtitle,
        x_title=names.x_title,
        y_title="% of tokens, logarithmic",
        lines=tuple(lines),
        axis="log",
        x_axis="log" if log else "linear",
        stepped=True,
    )


def _edges(samples: Sequence[Values], *, log: bool) -> Values:
    """Of bins over all samples, of equal width or equal ratio; one bin at least around a single value."""
    every = finite(np.concatenate(list(samples)))
    if not len(every):
        return every
    low, high = float(every.min()), float(every.max())
    if log:
        return np.geomspace(low / 1.02, high * 1.02, _RATIO_BINS + 1)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _ADVANTAGE_BINS + 1)


def _shares(sample: Values, edges: Values) -> Values:
    """Percent per bin, and a NaN for the last edge; NaN where a bin is empty."""
    counts = np.histogram(sample, edges)[0]
    return np.append(np.where(counts, 100.0 * counts / len(sample), np.nan), np.nan)
