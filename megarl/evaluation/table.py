"""An evaluation as lines of text that line up. Pure: what is not given is "-"."""

import math
from collections.abc import Sequence

from megarl.evaluation.estimators import powers_of_two
from megarl.evaluation.intervals import Estimate
from megarl.evaluation.summary import Comparison, Summary

_GAP = "  "


def summary_lines(summaries: Sequence[Summary]) -> list[str]:
    """A header, and a line per benchmark: shares in percent, with the 95 % interval of the mean over problems."""
    ks = sorted({k for one in summaries for k in powers_of_two(one.samples)})
    shown = [k for k in ks if k > 1]
    head = ["benchmark", "problems", "n", "mean@n %", "[95 %]", *(f"pass@{k} %" for k in shown)]
    head += [*(f"maj@{k} %" for k in shown if k > 2), "tokens", "cut %", "entropy"]
    rows = []
    for one in summaries:
        mean = one.measures[f"mean@{one.samples}"]
        cells = [one.name, str(one.problems), str(one.samples), _percent(mean.value), _interval(mean)]
        cells += [_share(one.measures.get(f"pass@{k}")) for k in shown]
        cells += [_share(one.measures.get(f"maj@{k}")) for k in shown if k > 2]
        rows.append([*cells, f"{one.length_mean:.0f}", _percent(one.truncated), _number(one.entropy)])
    return _aligned([head, *rows])


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """A header, and a line per benchmark: differences to the base in points, with their paired 95 % intervals, and who
    solves what."""
    head = ["against base", "mean@n", "[95 %]", "pass@n", "[95 %]", "draws won", "lost", "problems kept", "lost"]
    head += ["gained", "unsolved", "SRR %", "NDR %", "NSCR %"]
    rows = []
    for one in comparisons:
        mean, solved, support = (
            one.differences[f"mean@{one.samples}"],
            one.differences[f"pass@{one.samples}"],
            one.support,
        )
        cells = [one.name, _signed(mean.value), _interval(mean, signed=True)]
        cells += [_signed(solved.value), _interval(solved, signed=True), str(one.only_model), str(one.only_base)]
        cells += [str(len(those)) for those in (support.preserved, support.lost, support.gained, support.unsolved)]
        rows.append([*cells, *map(_percent, (support.retention, support.discovery, support.net_change))])
    return _aligned([head, *rows])


def summary_line(one: Summary) -> str:
    """In a line of its own, for a run's display."""
    n = one.samples
    mean = one.measures[f"mean@{n}"]
    return (
        f"{one.name}: mean@{n} {_percent(mean.value)} {_interval(mean)} %, pass@{n} "
        f"{_share(one.measures[f'pass@{n}'])} %, {one.length_mean:.0f} tokens, {_percent(one.truncated)} % cut off"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _share(one: Estimate | None) -> str:
    return "-" if one is None else _percent(one.value)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(one: Estimate, *, signed: bool = False) -> str:
    show = _signed if signed else _percent
    return f"[{show(one.low)}, {show(one.high)}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
