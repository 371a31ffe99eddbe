"""The last warnings and errors in a run's logs, read as the logs grow."""

import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from megarl.telemetry.followed_file import FollowedFile

_RECORD = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d) (?P<time>\d\d:\d\d:\d\d),\d{3} (?P<level>WARNING|ERROR|CRITICAL) +(?P<who>\S+-\d+) "
    r"(?P<logger>\S+): (?P<text>.*)"
)
"""As `logs.setup_logging` has them written."""
_FOLDER = re.compile(r"^/(?:[^/:]*/)*(?=[^/:]*\.py:\d+: )")
_KEPT = 50


@dataclass(frozen=True, slots=True)
class LoggedWarning:
    """One record, or several that say the same."""

    day: str
    time: str
    """HH:MM:SS by the clock and in the time zone of the machine that wrote it, as `day`; of several the last."""
    who: tuple[str, ...]
    """("policy-3",)."""
    level: str
    text: str
    """Its first line."""


class LogWarnings:
    """Of one folder of logs; logs that come later are found."""

    def __init__(self, folder: Path, *, at_once_bytes: int = 1 << 17) -> None:
        """at_once_bytes: the most that is read of a log in one look, its end."""
        self._folder, self._at_once = folder, at_once_bytes
        self._files: dict[str, FollowedFile] = {}
        self._by_file: dict[str, deque[LoggedWarning]] = {}

    def refresh(self) -> None:
        """Read what is new. A log that cannot be read is passed over until it can."""
        for path in self._folder.glob("*.log"):
            file = self._files.setdefault(path.name, FollowedFile(path, at_once_bytes=self._at_once))
            found = self._by_file.setdefault(path.name, deque(maxlen=_KEPT))
            try:
                new = file.read_new()
            except OSError:
                continue
            if new.anew:
                found.clear()
            found.extend(warning for line in new.lines if (warning := parse_warning(line)) is not None)

    def last(self, count: int) -> list[LoggedWarning]:
        """The latest of all logs, the newest last; what several processes say, or one again and again, is one."""
        together = [warning for found in self._by_file.values() for warning in found]
        together.sort(key=lambda warning: (warning.day, warning.time))
        by_text: dict[tuple[str, str], LoggedWarning] = {}
        for warning in together:
            earlier = by_text.pop((warning.level, warning.text), None)
            who = sorted({*earlier.who, *warning.who}) if earlier else warning.who
            by_text[warning.level, warning.text] = replace(warning, who=tuple(who))
        return list(by_text.values())[-count:] if count else []


def parse_warning(line: bytes) -> LoggedWarning | None:
    """None of a line that is none, or the later line of one. Of a warning of Python's the folder of its source is left
    out."""
    match = _RECORD.fullmatch(line.decode("utf-8", errors="replace"))
    if match is None:
        return None
    text = _FOLDER.sub("", match["text"]) if match["logger"] == "py.warnings" else match["text"]
    return LoggedWarning(match["day"], match["time"], (match["who"],), match["level"], text)
