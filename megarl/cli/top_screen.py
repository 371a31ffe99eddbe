"""A `Frame` as lines for a terminal of some width and height; pure. No line is wider, and there are not more."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from megarl.cli.top_frame import Curve, Frame, RunFrame, ShownProcess
from megarl.cli.top_table import table_lines
from megarl.cli.top_words import STYLES, bar, cut, duration, heading
from megarl.telemetry.columns import format_count, format_number
from megarl.telemetry.heartbeat import IDLE
from megarl.telemetry.phases import describe_ranks
from megarl.telemetry.sparkline import ASCII_LEVELS, LEVELS, sparkline

_WIDE = 120
"""From this width on, phases stand beside the curves."""
_KEYS = "q quits"
_ANY = 10**6
"""Lines: as many as there are."""


def frame_lines(frame: Frame, *, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """The screen; its last line says which keys there are."""
    room = height - 1
    if frame.alone:
        lines = _run_lines(frame, frame.runs[0], width=width, height=room, ascii_only=ascii_only)
    else:
        lines = table_lines(frame, width=width, height=room, ascii_only=ascii_only)
    screen = [*(cut(_printable(line), width) for line in lines[:room]), cut(Text(_KEYS, style="dim"), width)]
    return [_in_ascii(line) for line in screen] if ascii_only else screen


def _printable(line: Text) -> Text:
    """A name, a failure or a warning may hold anything, and must not steer the terminal."""
    plain = "".join(" " if unicodedata.category(one) == "Cc" else one for one in line.plain)
    if plain == line.plain:
        return line
    line = line.copy()
    line.plain = plain
    return line


def _in_ascii(line: Text) -> Text:
    """A name or a warning may hold anything."""
    line.plain = "".join(one if one.isascii() else "~" for one in line.plain)
    return line


def _run_lines(frame: Frame, run: RunFrame, *, width: int, height: int, ascii_only: bool) -> list[Text]:
    head = [*_head(frame, run, width), *_progress(run, width, ascii_only)]
    tail = _tail(run)
    wide = width >= _WIDE
    column = width // 2 + 2 if wide else 0
    curves = _curves(run.curves, width // 2 if wide else width, ascii_only)
    phases = _phases(run, width - column, ascii_only, most=_ANY)
    processes, warnings = _processes(run, most=_ANY), _warnings(run)
    upper = [max(len(curves), len(phases))] if wide else [len(curves), len(phases)]
    *upper, for_processes, for_warnings = share_height(
        [*upper, len(processes), len(warnings)], [*([8] if wide else [4, 6]), 5, 3], height - len(head) - len(tail)
    )
    phases = _phases(run, width - column, ascii_only, most=upper[-1])
    drawn = _beside(curves[: upper[0]], phases, column) if wide else [*curves[: upper[0]], *phases]
    shown = _processes(run, most=for_processes)
    # Where several are on one line, the lines that saves are the warnings'.
    return [*head, *drawn, *shown, *_newest(warnings, for_warnings + for_processes - len(shown)), *tail]


def share_height(wanted: Sequence[int], least: Sequence[int], height: int) -> list[int]:
    """Lines for each section: its least, as far as there is room, then what it wants, the first ones first."""
    given = [min(want, low) for want, low in zip(wanted, least, strict=True)]
    while sum(given) > height:
        largest = max(range(len(given)), key=lambda at: (given[at], at))
        if not given[largest]:
            return given
        given[largest] -= 1
    for at, want in enumerate(wanted):
        given[at] += min(want - given[at], height - sum(given))
    return given


def _head(frame: Frame, run: RunFrame, width: int) -> list[Text]:
    right = Text(f"{run.standing}  {frame.at}", style=STYLES[run.standing])
    left = cut(Text(run.label, style="bold"), max(8, width - len(right) - 2))
    line = Text.assemble(left, " " * max(1, width - left.cell_len - right.cell_len), right)
    return [line, *([Text(run.message, style=STYLES[run.standing])] if run.message else [])]


def _progress(run: RunFrame, width: int, ascii_only: bool) -> list[Text]:
    steps = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    parts = [steps]
    if run.step_s is not None:
        parts.append(f"{duration(run.step_s)} a step")
    if run.left_s is not None:
        parts.append(f"{duration(run.left_s)} left")
    if run.tokens_per_s is not None:
        parts.append(f"{format_count(run.tokens_per_s, width=9)} tokens/s")
    words = "   ".join(parts)
    if not run.steps:
        return [Text(words)]
    room = width - len(words) - 2
    if room < 10:
        return [Text(words)]
    return [
        Text.assemble(bar(run.step / run.steps, room, style="green", ascii_only=ascii_only, full=True), "  ", words)
    ]


def _curves(curves: Sequence[Curve], width: int, ascii_only: bool) -> list[Text]:
    levels = ASCII_LEVELS if ascii_only else LEVELS
    lines = []
    for curve in curves:
        values = [value for _, value in curve.points]
        numbers = [format_number(value, width=8, decimals=curve.decimals) for value in (min(values), max(values))]
        room = max(8, width - 12 - 9 - 1 - 20)
        drawn = sparkline(curve.points, width=room, levels=levels)
        lines.append(
            Text.assemble(
                f"{curve.label:<12}",
                (f"{format_number(curve.last, width=8, decimals=curve.decimals):>8} ", "bold"),
                (f"{drawn:<{room}} ", "cyan"),
                (f"{numbers[0]:>8} .. {numbers[1]}", "dim"),
            )
        )
    return lines


def _phases(run: RunFrame, width: int, ascii_only: bool, *, most: int) -> list[Text]:
    """Those that take longest where there is no room for all."""
    if not run.phases:
        return []
    longest = sorted((seconds for _, seconds in run.phases), reverse=True)
    room = max(8, width - 18 - 9)
    lines = [heading("seconds a step, by phase")]
    for name, seconds in run.phases:
        if seconds in longest[: most - 1]:
            drawn = bar(seconds / longest[0], room, style="blue", ascii_only=ascii_only)
            lines.append(Text.assemble(f"{name:<17}", f"{format_number(seconds, width=8, decimals=2):>8} ", drawn))
    return lines[:most]


def _processes(run: RunFrame, *, most: int) -> list[Text]:
    """A line for each, or for each group that does the same where there is no room for that."""
    if not run.processes:
        return []
    age = run.beat_age_s or 0.0
    ago = f"heartbeat {duration(age)} ago"
    lines = [heading(f"processes ({ago})")]
    groups = [[process] for process in run.processes]
    if len(groups) > most - 1:
        groups = _group(run.processes)
    running = run.standing == "running"
    lines += [_process_line(group, age if running else 0.0) for group in groups]
    if len(lines) > most > 1:
        left_out = sum(len(group) for group in groups[most - 2 :])
        lines = [*lines[: most - 1], Text(f"and {left_out} more", style="dim")]
    return lines


def _group(processes: Sequence[ShownProcess]) -> list[list[ShownProcess]]:
    """Those of a role with one phase and one mark together; what is marked first."""

    def key(process: ShownProcess) -> tuple[bool, str, str, str]:
        return not process.mark, process.beat.role, process.beat.phase, process.mark

    return [list(group) for _, group in groupby(sorted(processes, key=key), key=key)]


def _process_line(group: Sequence[ShownProcess], age_s: float) -> Text:
    beats = [process.beat for process in group]
    first = beats[0]
    who = f"{first.role} {describe_ranks(beat.rank for beat in beats)}"
    nodes = sorted({beat.node for beat in beats if beat.node})
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes" if nodes else "?"
    lasting = duration(max(beat.for_s for beat in beats) + age_s)
    step = f"step {first.step}" if first.step else "start-up"
    line = Text(f"{who:<18} {where:<12} {step:<11} ")
    if mark := group[0].mark:
        line.append(f"!! {mark}: ", style="bold red")
    line.append(f"{first.phase} for {lasting}")
    if first.phase == IDLE and not mark:
        line.stylize("dim")
    return line


def _warnings(run: RunFrame) -> list[Text]:
    if not run.warnings:
        return []
    styles = {"WARNING": "yellow"}
    lines = [heading("last warnings")]
    for warning in run.warnings:
        words = f"{warning.time} {_who(warning.who)} {warning.text}"
        lines.append(Text(words, style=styles.get(warning.level, "red")))
    return lines


def _who(names: Sequence[str]) -> str:
    """("policy-0", "policy-1") as "policy 0 to 1"."""
    by_role: dict[str, list[int]] = {}
    for name in names:
        role, _, rank = name.rpartition("-")
        by_role.setdefault(role, []).append(int(rank))
    return ", ".join(f"{role} {describe_ranks(ranks)}" for role, ranks in by_role.items())


def _newest(lines: Sequence[Text], rows: int) -> list[Text]:
    """The heading and the last ones."""
    return list(lines[:1]) + list(lines[1:][-(rows - 1) :]) if rows > 1 else []


def _tail(run: RunFrame) -> list[Text]:
    lines = [Text(f"checkpoint {run.checkpoint or 'none'}" + ("" if run.restarts else "   restarts none"))]
    lines += [Text(f"restarts   {line}", style="yellow") for line in run.restarts[-2:]]
    lines += [Text(problem, style="red") for problem in run.problems[:2]]
    return lines


def _beside(left: Sequence[Text], right: Sequence[Text], column: int) -> list[Text]:
    lines = []
    for at in range(max(len(left), len(right))):
        line = left[at].copy() if at < len(left) else Text()
        if at < len(right):
            line = cut(line, column - 2)
            line.append(" " * (column - line.cell_len))
            line.append_text(right[at])
        lines.append(line)
    return lines
