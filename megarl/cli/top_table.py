"""Several runs as a table for a terminal of some width and height; pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from megarl.cli.top_frame import ATTENTION, Curve, Frame, RunFrame, count_standings
from megarl.cli.top_words import STYLES, cut, duration, heading
from megarl.telemetry.columns import format_count, format_number
from megarl.telemetry.sparkline import ASCII_LEVELS, LEVELS, sparkline

_GAP = 2
_LABEL = (12, 44)
"""Characters of the first column, at least and at most."""
_MESSAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    header: str
    width: int
    cell: Callable[[RunFrame, bool], Text | str]
    """Of a run; whether the terminal has ASCII alone."""
    rank: int = 0
    """Importance: of what does not fit the highest number goes first; 0 stays."""
    left: bool = False


_Sized = tuple[_Column, int, list[Text]]
"""A column, how wide it is here, its cells with the header first."""


def _progress(run: RunFrame, _: bool) -> str:
    return f"{run.step}/{run.steps}" if run.steps else str(run.step or "-")


def _curve(run: RunFrame, labels: Sequence[str]) -> Curve | None:
    return next((curve for curve in run.curves if curve.label in labels), None)


def _number_of(*labels: str) -> Callable[[RunFrame, bool], str]:
    def cell(run: RunFrame, _: bool) -> str:
        curve = _curve(run, labels)
        return "-" if curve is None else format_number(curve.last, width=6, decimals=min(3, curve.decimals))

    return cell


def _line_of(*labels: str, width: int) -> Callable[[RunFrame, bool], Text]:
    def cell(run: RunFrame, ascii_only: bool) -> Text:
        curve = _curve(run, labels)
        levels = ASCII_LEVELS if ascii_only else LEVELS
        return Text("" if curve is None else sparkline(curve.points, width=width, levels=levels), style="cyan")

    return cell


def _standing(run: RunFrame, _: bool) -> Text:
    return Text("stuck?", style="bold red") if run.stuck else Text(run.standing, style=STYLES[run.standing])


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _doing(run: RunFrame, _: bool) -> Text:
    marked = [process for process in run.processes if process.mark]
    if marked:
        return Text(f"!! {marked[0].beat.role} {marked[0].beat.rank}: {marked[0].mark}", style="bold red")
    return Text(run.doing)


_COLUMNS = (
    _Column(header="", width=11, cell=_standing, left=True),
    _Column(header="step", width=11, cell=_progress),
    _Column(header="left", width=11, cell=lambda run, _: _time(run.left_s), rank=2),
    _Column(header="a step", width=8, cell=lambda run, _: _time(run.step_s), rank=6),
    _Column(header="reward", width=6, cell=_number_of("reward", "loss")),
    _Column(header="", width=12, cell=_line_of("reward", "loss", width=12), rank=3, left=True),
    _Column(header="entropy", width=7, cell=_number_of("entropy"), rank=1),
    _Column(header="", width=12, cell=_line_of("entropy", width=12), rank=4, left=True),
    _Column(header="clip low %", width=10, cell=_number_of("clip low %"), rank=5),
    _Column(header="clip high %", width=11, cell=_number_of("clip high %"), rank=5),
    _Column(header="tokens/s", width=8, cell=lambda run, _: format_count(run.tokens_per_s, width=8), rank=7),
    _Column(header="doing", width=48, cell=_doing, rank=8, left=True),
)


def table_lines(frame: Frame, *, width: int, height: int, ascii_only: bool) -> list[Text]:
    """A heading, a line for each run, and why some of them ended. Where the screen is too low for all, those that a
    person should know of and those that run come first, and a line counts the others."""
    messages = _messages(frame.runs)
    shown, rest = _choose(frame.runs, height - 2 - len(messages))
    lines = [_title(frame, width), *_rows(shown, width, ascii_only)]
    if rest:
        lines.append(Text(f"and {len(rest)} more: {count_standings(rest)}", style="dim"))
    return [*lines, *messages]


def _rows(runs: Sequence[RunFrame], width: int, ascii_only: bool) -> list[Text]:
    """The header, and a line for each. A column is as wide as what is in it, at most as it is declared."""
    longest = max((len(run.label) for run in runs), default=0)
    label_width = min(_LABEL[1], max(_LABEL[0], longest), max(_LABEL[0], width // 3))
    labels = [Text("run", style="bold"), *(Text(run.label) for run in runs)]
    columns = [
        (one, [Text(one.header, style="bold"), *(_text(one.cell(run, ascii_only)) for run in runs)]) for one in _COLUMNS
    ]
    sized = [(one, min(one.width, max(cell.cell_len for cell in cells)), cells) for one, cells in columns]
    kept = _fit(sized, width - label_width)
    return [
        Text(" " * _GAP).join(
            [_pad(label, label_width, left=True), *(_pad(cells[at], wide, left=one.left) for one, wide, cells in kept)]
        )
        for at, label in enumerate(labels)
    ]


def _title(frame: Frame, width: int) -> Text:
    words = f"{len(frame.runs)} runs: {count_standings(frame.runs)}"
    left = cut(Text(f"{frame.title}   {words}", style="bold"), max(8, width - len(frame.at) - 2))
    return Text.assemble(left, " " * max(1, width - left.cell_len - len(frame.at)), frame.at)


def _choose(runs: Sequence[RunFrame], room: int) -> tuple[list[RunFrame], list[RunFrame]]:
    """(those with a line, the others), both in their order."""
    if len(runs) <= room:
        return list(runs), []
    order = sorted(range(len(runs)), key=lambda at: (_urgency(runs[at]), at))
    kept = set(order[: max(0, room - 1)])
    return [run for at, run in enumerate(runs) if at in kept], [run for at, run in enumerate(runs) if at not in kept]


def _urgency(run: RunFrame) -> int:
    if run.stuck or run.standing in ATTENTION:
        return 0
    return {"running": 1, "interrupted": 2, "waiting": 3, "finished": 4}.get(run.standing, 5)


def _messages(runs: Sequence[RunFrame]) -> list[Text]:
    told = [run for run in runs if run.standing in ATTENTION and run.message][-_MESSAGES:]
    lines = [Text(f"{run.label}: {run.message}".partition("\n")[0], style=STYLES[run.standing]) for run in told]
    return [heading("ended by a failure"), *lines] if lines else []


def _fit(columns: Sequence[_Sized], width: int) -> list[_Sized]:
    kept = [one for one in columns if one[1]]
    while sum(_GAP + wide for _, wide, _ in kept) > width:
        worst = max(column.rank for column, _, _ in kept)
        if worst == 0:
            break
        kept = [one for one in kept if one[0].rank != worst]
    return kept


def _text(content: Text | str) -> Text:
    return content if isinstance(content, Text) else Text(content)


def _pad(text: Text, width: int, *, left: bool) -> Text:
    text = cut(text, width)
    blanks = " " * (width - text.cell_len)
    return Text.assemble(text, blanks) if left else Text.assemble(blanks, text)
