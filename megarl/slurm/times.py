"""Times as Slurm writes them, and ages as a person reads them."""

import re

_FORMS = re.compile(r"(?:(?P<days>\d+)-(?P<rest>\d+(?::\d+){0,2})|(?P<short>\d+(?::\d+){0,2}))")


def parse_time_limit(text: str) -> int:
    """Seconds of a time limit: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. ValueError for anything else."""
    match = _FORMS.fullmatch(text)
    if match is None:
        raise ValueError(f'expected a time such as 30 (minutes), 2:00:00 or 1-12:00:00, found "{text}"')
    if match["days"] is not None:
        hours, minutes, seconds = ([int(part) for part in match["rest"].split(":")] + [0, 0])[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = [int(part) for part in match["short"].split(":")]
    if len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return (hours * 60 + minutes) * 60 + seconds


def format_seconds(seconds: float) -> str:
    """Of an age, two units at most: "8 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
