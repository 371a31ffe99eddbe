"""Words, bars and colours of the screens of `megarl top`."""

from rich.text import Text

from megarl.cli.top_frame import Shown

STYLES: dict[Shown, str] = {
    "running": "bold green",
    "finished": "bold blue",
    "interrupted": "bold yellow",
    "failed": "bold red",
    "killed": "bold red",
    "unknown": "bold red",
    "waiting": "dim",
    "skipped": "dim",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int, *, style: str, ascii_only: bool, full: bool = False) -> Text:
    """A bar of `share` (0 to 1) of the width, to an eighth of a character. full: the rest is drawn too."""
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    whole, part = divmod(eighths, 8)
    if ascii_only:
        drawn, rest = "#" * whole, "."
    else:
        drawn, rest = "█" * whole + (_EIGHTHS[part] if part else ""), "░"
    text = Text(drawn, style=style)
    if full:
        text.append(rest * (width - len(drawn)), style="dim")
    return text


def duration(seconds: float) -> str:
    """Two units at most, short: "0.42 s", "3.2 s", "12 s", "4 min 10 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def heading(text: str) -> Text:
    """The name of a part of the screen."""
    return Text(text, style="bold underline")


def cut(line: Text, width: int) -> Text:
    """A line that is not wider, with an ellipsis where it was."""
    line = line.copy()
    line.truncate(width, overflow="ellipsis")
    return line
