"""What an ablation has found, as tables for a terminal: a row per setting, numbers below each other, any width."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from megarl.ablation.cell_runs import read_cells
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.estimate import Estimate, describe_bytes
from megarl.ablation.finish import tabulate
from megarl.ablation.measures import MEASURES
from megarl.ablation.seeds import LEVEL
from megarl.ablation.summary import AblationSummary, Measured, SettingSummary, summarise_ablation
from megarl.cli.paths import shown_path

_GAP = "  "
_NAMED = 3
"""Cells that are named of those which are left out for the same reason."""
_MARK_SEEDS, _MARK_PROBLEMS = "*", "°"


@dataclass(frozen=True, slots=True)
class _Column:
    """How a measure is shown."""

    measure: str
    title: str
    scale: float
    decimals: int


def finish_tables(console: Console, directory: AblationDirectory) -> bool:
    """Write table.parquet and summary.json, and print the summary. A disk that is full is told, not raised: the runs
    are there. False where something could not be written."""
    try:
        summary = tabulate(directory)
    except OSError as error:
        console.print(Text(f"tables    not written: {error.strerror or error}"), soft_wrap=True)
        return False
    _print_lines(console, summary)
    console.print(Text(f"tables    {shown_path(directory.table_path)}, {directory.summary_path.name}"), soft_wrap=True)
    return True


def print_summary(console: Console, directory: AblationDirectory) -> None:
    """From the runs as they are now. Raises as `tabulate`, but writes nothing."""
    _print_lines(console, summarise_ablation(directory.plan(), read_cells(directory)))


def _print_lines(console: Console, summary: AblationSummary) -> None:
    width = console.width if console.is_terminal else None
    for line in summary_lines(summary, width=width):
        console.print(Text(line), soft_wrap=True)


def summary_lines(summary: AblationSummary, *, width: int | None = None) -> list[str]:
    """Means, differences to each control, what is left out. width: of a line; columns beyond it follow below. A first
    column that is wider still is not cut: settings are told apart by it."""
    lines = [_heading(summary)]
    if summary.compared.upto:
        lines += ["", *_table(summary.settings, lambda one: one.measures, _shown, width=width)]
        for control in dict.fromkeys(one.control for one in summary.settings if one.control is not None):
            lines += ["", *_differences(summary, control, width=width)]
        lines += ["", *_legend(summary)]
    return [*lines, *_left_out(summary)]


def _differences(summary: AblationSummary, control: str, *, width: int | None) -> Iterator[str]:
    compared = [one for one in summary.settings if one.control == control]
    if not any(one.differences for one in compared):
        yield f"no difference to {control}: no other setting has a run of a seed that it has"
        return
    yield f"difference to {control}, in pairs of one seed"
    yield from _table(compared, lambda one: one.differences or {}, _shown_difference, width=width)


def _heading(summary: AblationSummary) -> str:
    steps, settings = summary.steps, len(summary.settings)
    cells = len(summary.compared.upto) + len(summary.compared.left_out)
    text = f"{summary.name}: {cells} runs of {settings} setting{'' if settings == 1 else 's'}"
    if not steps:
        return f"{text}, none with a step"
    at = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))}"
    if summary.compared.is_final:
        return f"{text}; {len(summary.compared.upto)} finished, at {at}"
    return f"{text}, none finished; {len(summary.compared.upto)} as far as all of them are, at {at}"


def _table(
    settings: Sequence[SettingSummary],
    measures: Callable[[SettingSummary], Mapping[str, Measured]],
    show: "Callable[[Measured | None, _Column], _Cell]",
    *,
    width: int | None,
) -> Iterator[str]:
    names = ["setting", *(one.name for one in settings)]
    seeds = ["seeds", *(_seeds(one) for one in settings)]
    columns = [
        [column.title, *_aligned([show(measures(one).get(column.measure), column) for one in settings])]
        for column in _columns(settings)
        if any(column.measure in measures(one) for one in settings)
    ]
    for number, block in enumerate(_blocks(names, [seeds, *columns], width)):
        if number:
            yield ""
        yield from _rows([names, *block])


def _columns(settings: Sequence[SettingSummary]) -> list[_Column]:
    """Training's, then of every benchmark mean@n and the largest pass@k."""
    columns = [_training_column(one.name, one.title) for one in MEASURES]
    evaluations = {name: None for one in settings for name in one.measures if name.startswith("eval/")}
    largest: dict[tuple[str, str], str] = {}
    for name in evaluations:  # in order of k
        benchmark, _, measure = name.removeprefix("eval/").rpartition("/")
        largest[benchmark, measure.partition("@")[0]] = name
    return columns + [_Column(name, f"{name.removeprefix('eval/')} %", 100.0, 1) for name in largest.values()]


def _training_column(name: str, title: str) -> _Column:
    if title.endswith("%"):
        return _Column(name, title, 100.0, 2)
    return _Column(name, title, 1.0, 1 if title == "tokens" else 3)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A number in parts, which stand below each other."""

    value: str = "-"
    half_width: str = ""
    mark: str = ""
    seeds: str = ""


def _shown(found: Measured | None, column: _Column) -> _Cell:
    return _cell(found, column, sign="", mark="")


def _shown_difference(found: Measured | None, column: _Column) -> _Cell:
    if found is None:
        return _Cell()
    over_problems = found.problems is not None and (found.problems.low > 0 or found.problems.high < 0)
    mark = (_MARK_SEEDS if found.seeds.excludes_zero else "") + (_MARK_PROBLEMS if over_problems else "")
    return _cell(found, column, sign="+", mark=mark)


def _cell(found: Measured | None, column: _Column, *, sign: str, mark: str) -> _Cell:
    if found is None:
        return _Cell()
    seeds = found.seeds
    half_width = "" if seeds.half_width is None else f"{seeds.half_width * column.scale:.{column.decimals}f}"
    return _Cell(f"{seeds.value * column.scale:{sign}.{column.decimals}f}", half_width, mark, f"[{seeds.n}]")


def _aligned(cells: Sequence[_Cell]) -> list[str]:
    value, half_width, mark = (
        max(len(getattr(one, part)) for one in cells) for part in ("value", "half_width", "mark")
    )
    texts = []
    for one in cells:
        middle = f" ± {one.half_width:>{half_width}}" if one.half_width else " " * (half_width + 3 if half_width else 0)
        texts.append(f"{one.value:>{value}}{middle}{one.mark:<{mark}} {one.seeds}".rstrip())
    return texts


def _seeds(one: SettingSummary) -> str:
    return str(one.planned) if len(one.seeds) == one.planned else f"{len(one.seeds)} of {one.planned}"


def _blocks(names: Sequence[str], columns: Sequence[Sequence[str]], width: int | None) -> Iterator[list[Sequence[str]]]:
    """The columns in as few blocks as fit, at least one column each."""
    first = max(map(len, names))
    block: list[Sequence[str]] = []
    used = first
    for column in columns:
        wide = len(_GAP) + max(map(len, column))
        if block and width is not None and used + wide > width:
            yield block
            block, used = [], first
        block.append(column)
        used += wide
    yield block


def _rows(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        yield _GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _legend(summary: AblationSummary) -> Iterator[str]:
    yield f"± half of the {LEVEL:.0%} interval of the mean over [n] seeds, by Student's t; [1] has none"
    if any(one.differences for one in summary.settings):
        yield f"{_MARK_SEEDS} it excludes 0; {_MARK_PROBLEMS} so does the one over problems, of these runs"


def _left_out(summary: AblationSummary) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, why in summary.compared.left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"left out: {', '.join(names[:_NAMED])}{more}: {why}"
    for problem in summary.problems:
        yield f"not read: {problem}"


def print_estimate(console: Console, estimate: Estimate) -> None:
    """What the runs that are to come will take; what is too little comes last."""
    for line in estimate_lines(estimate):
        console.print(Text(line), soft_wrap=True)


def estimate_lines(estimate: Estimate) -> list[str]:
    """A line each for room and time, labels to the left."""
    room = estimate.room
    parts = {"exports": room.exports, "checkpoints": room.checkpoints + room.writing, "rollouts at most": room.rollouts}
    disk = ", ".join(f"{name} {describe_bytes(count)}" for name, count in parts.items() if count)
    lines = [
        f"runs   {estimate.cells}, {estimate.at_once} at a time",
        f"disk   {describe_bytes(room.most)} at most ({disk}); {describe_bytes(estimate.free_bytes)} free",
        f"time   {_describe_time(estimate)}",
    ]
    if estimate.problem:
        return [*lines, f"!      {estimate.problem}"]
    return [*lines, f"!      {estimate.warning}"] if estimate.warning else lines


def _describe_time(estimate: Estimate) -> str:
    if estimate.seconds is None:
        some = "" if len(estimate.unknown) == estimate.cells else f" of {len(estimate.unknown)} of them"
        return f"not known{some} until a first run has made its first steps: no earlier run of the shape was found"
    sources = ", ".join(f"{pace.step_s:.3g} s a step in {pace.source}" for pace in estimate.paces)
    return f"{_duration(estimate.seconds)} ({sources})"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172800 else f"{seconds / 86400:.1f} days"
