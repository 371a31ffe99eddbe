"""The one-line-per-step table: which columns there are, what a cell looks like, which columns fit a width.

Pure text: every line of a table has the same length, and a cell never outgrows its column. "-" is a value that was not
logged, "nan" one that was and is not a number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, float]
_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. Columns of one `group` that stand side by side share a heading above their headers."""

    header: str
    width: int
    render: Callable[[Values], str]
    """The cell, at most `width` characters."""
    group: str = ""
    rank: int = 0
    """Importance: 0 is never dropped; of the rest the highest number goes first when the line is too wide."""


def format_number(value: float | None, *, width: int, decimals: int) -> str:
    """`value` in at most `width` characters: fixed point, or with an exponent where that is too wide or all zeros."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return f"{value}"
    fixed = f"{value:.{decimals}f}"
    if len(fixed) <= width and (value == 0 or float(fixed) != 0):
        return fixed
    for digits in (2, 1, 0):
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        scientific = f"{mantissa}e{int(exponent)}"
        if len(scientific) <= width:
            return scientific
    return "#" * width


def format_count(value: float | None, *, width: int) -> str:
    """A large number without decimals: 12,345, or 1.2M where that is too wide."""
    if value is None or not math.isfinite(value):
        return format_number(value, width=width, decimals=0)
    if len(text := f"{value:,.0f}") <= width:
        return text
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if len(text := f"{value / size:.1f}{unit}") <= width and abs(value / size) < 1000:
            return text
    return format_number(value, width=width, decimals=0)


def number_column(
    name: str, header: str, *, width: int = 7, decimals: int = 3, scale: float = 1.0, group: str = "", rank: int = 0
) -> Column:
    """The metric `name` times `scale` (100 for a share shown in percent)."""

    def render(values: Values) -> str:
        value = values.get(name)
        return format_number(None if value is None else scale * value, width=width, decimals=decimals)

    return Column(header=header, width=width, render=render, group=group, rank=rank)


def count_column(name: str, header: str, *, width: int = 8, group: str = "", rank: int = 0) -> Column:
    """The metric `name` as a whole number."""
    return Column(
        header=header,
        width=width,
        render=lambda values: format_count(values.get(name), width=width),
        group=group,
        rank=rank,
    )


def seconds_column(names: Sequence[str], header: str, *, rank: int) -> Column:
    """The sum of those phases among `names` that were timed."""

    def render(values: Values) -> str:
        timed = [values[name] for name in (f"timing_s/{phase}" for phase in names) if name in values]
        return format_number(math.fsum(timed) if timed else None, width=7, decimals=2)

    return Column(header=header, width=7, render=render, group="seconds", rank=rank)


def _render_reward(values: Values) -> str:
    mean = format_number(values.get("reward/mean"), width=6, decimals=3)
    std = format_number(values.get("reward/std"), width=4, decimals=2)
    return f"{mean} ±{std:<4}"


RL_COLUMNS: tuple[Column, ...] = (
    Column(header="mean ±std", width=12, render=_render_reward, group="reward"),
    number_column("actor/entropy", "entropy", rank=1),
    number_column("clip_ratio/low_mean", "low", width=5, decimals=2, scale=100, group="clip %", rank=2),
    number_column("clip_ratio/high_mean", "high", width=5, decimals=2, scale=100, group="clip %", rank=2),
    number_column("actor/ppo_kl", "kl", decimals=4, rank=3),
    number_column("actor/grad_norm", "grad", width=6, rank=3),
    count_column("response_length/mean", "response", group="tokens", rank=2),
    count_column("perf/tokens_per_s", "per s", group="tokens", rank=4),
    seconds_column(("step",), "total", rank=1),
    seconds_column(("generate",), "gen", rank=5),
    seconds_column(("old_logp",), "logp", rank=6),
    seconds_column(("update",), "train", rank=5),
    seconds_column(("publish",), "publish", rank=6),
)
"""`megarl train`: one line per RL step."""

SFT_COLUMNS: tuple[Column, ...] = (
    number_column("sft/loss", "loss", width=8, decimals=4),
    number_column("actor/lr", "lr", width=8, decimals=8, rank=1),
    number_column("actor/grad_norm", "grad", width=8, rank=1),
    count_column("perf/tokens_per_s", "tokens/s", rank=2),
    seconds_column(("step",), "total", rank=2),
)
"""`megarl sft`: one line per update."""


class StepTable:
    """The lines of a run's table for a given width."""

    def __init__(self, columns: Sequence[Column], *, steps: int, width: int | None = None) -> None:
        """width: characters a line may have; None: no limit. The least important columns are dropped to fit."""
        step_width = max(4, 2 * len(str(steps)) + 1)
        step = Column(header="step", width=step_width, render=lambda values: f"{int(values['step'])}/{steps}")
        self._columns = [step, *_fit(columns, None if width is None else width - step_width)]

    def header(self) -> list[str]:
        """Two lines: the groups, and the columns."""
        return [self._group_line(), _GAP.join(column.header.rjust(column.width) for column in self._columns)]

    def line(self, values: Values) -> str:
        """The cells of a step; `values` holds "step"."""
        return _GAP.join(column.render(values).rjust(column.width) for column in self._columns)

    def _group_line(self) -> str:
        parts: list[str] = []
        index = 0
        while index < len(self._columns):
            group = self._columns[index].group
            end = index + 1
            while group and end < len(self._columns) and self._columns[end].group == group:
                end += 1
            width = sum(column.width for column in self._columns[index:end]) + len(_GAP) * (end - index - 1)
            parts.append(_rule(group, width) if group else " " * width)
            index = end
        return _GAP.join(parts)


def _rule(label: str, width: int) -> str:
    return f" {label} ".center(width, "-") if len(label) + 4 <= width else label.center(width)


def _fit(columns: Sequence[Column], width: int | None) -> list[Column]:
    """`columns` without the least important ones, until each fits with the gap before it.

    Columns of one group and one rank are one statement (the two clip sides) and go together.
    """
    kept = list(columns)
    while width is not None and sum(len(_GAP) + column.width for column in kept) > width:
        worst = max(column.rank for column in kept)
        if worst == 0:
            break
        group = next(column.group for column in reversed(kept) if column.rank == worst)
        kept = [column for column in kept if (column.rank, column.group) != (worst, group)]
    return kept
