"""`megarl top`: runs as they go on, from their files alone, on any machine that sees these."""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from megarl.cli.top_frame import Frame
from megarl.cli.top_keys import Keys
from megarl.cli.top_places import Place, find_places
from megarl.cli.top_screen import frame_lines

_KEY_WAIT_S = 0.2
_SHARE = 0.25
"""Of the time, at most, that looking may take: where files are slow it is done less often."""
_OFF_TERMINAL = (140, 200)
"""Width and height of a frame that goes to a file."""


def run_top(paths: Sequence[Path], *, once: bool, every_s: float) -> int:
    """Show the runs until q or Ctrl-C; or once, as where standard output is no terminal. Returns the exit code, 0."""
    places, title = find_places(paths)
    # By the stream alone: FORCE_COLOR and the like must not put control characters, or frames for ever, into a log.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, force_terminal=terminal)
    if once or not terminal or console.is_dumb_terminal:
        width, height = (console.width, 10**4) if terminal else _OFF_TERMINAL
        for line in _draw(console, look(places, title), width=width, height=height)[:-1]:  # the keys
            console.print(line, soft_wrap=True)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the terminal stayed as it is in between
    with suppress(KeyboardInterrupt):
        _watch(console, places, title, every_s)
    return 0


def look(places: Sequence[Place], title: str) -> Frame:
    """All of them now."""
    runs = tuple(frame for place in places if (frame := place.look()) is not None)
    return Frame(title=title, at=time.strftime("%H:%M:%S"), runs=runs, alone=len(places) == 1)


def _watch(console: Console, places: Sequence[Place], title: str, every_s: float) -> None:
    """Redraw when there is something new to see, or another size to see it in."""
    with Keys(sys.stdin) as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(Text(f"reading {title}"), refresh=True)  # of many long runs the first look takes seconds
        while True:
            began_s = time.monotonic()
            frame = look(places, title)
            took_s = time.monotonic() - began_s
            size = None
            due_s = time.monotonic() + max(every_s, took_s / _SHARE) - took_s
            while True:
                if size != console.size:
                    size = console.size
                    lines = _draw(console, frame, width=size.width, height=size.height)
                    live.update(Group(*lines), refresh=True)
                left_s = due_s - time.monotonic()
                if left_s <= 0:
                    break
                if "q" in keys.wait(min(left_s, _KEY_WAIT_S)).lower():
                    return


def _draw(console: Console, frame: Frame, *, width: int, height: int) -> list[Text]:
    return frame_lines(frame, width=width, height=height, ascii_only=console.options.ascii_only)
