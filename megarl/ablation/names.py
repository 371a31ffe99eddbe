"""Names of settings, made of what sets them apart: `low0.2-high0.28`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LONGEST = 60
_UNFIT = re.compile(r"[^\w.-]+")


def shorten_fields(fields: Iterable[str]) -> dict[str, str]:
    """Dotted path -> as much of its end as tells it from the others: `low`, or `clip.low` where another ends so."""
    fields = list(dict.fromkeys(fields))
    return {field: _tail(field, [other for other in fields if other != field]) for field in fields}


def name_values(values: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Of fields and their values: `low0.2-high0.28`, `method-grpo`, `normalize-false`."""
    parts = []
    for field, value in values.items():
        text, key = _value_text(value), short[field].replace(".", "_")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        parts.append(f"{key}{text}" if is_number else f"{key}-{text}")
    return "-".join(parts)


def name_files(fragments: Sequence[str]) -> str:
    """Of the fragments of a setting: `dapo`, `grpo-tis`."""
    return "-".join(_fit(Path(fragment).stem) for fragment in fragments)


def _tail(field: str, others: Sequence[str]) -> str:
    parts = field.split(".")
    for length in range(1, len(parts)):
        tail = ".".join(parts[-length:])
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return field


def _value_text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case str():
            # Of a path or a hub's name the last part tells.
            return _fit(value.rstrip("/").rpartition("/")[2])
        case Mapping():
            return "-".join(_value_text(item) for item in value.values()) or "on"
        case list() | tuple():
            return "-".join(map(_value_text, value)) or "none"
    return _fit(str(value))


def _fit(text: str) -> str:
    """As a run's name may be."""
    return _UNFIT.sub("_", text).strip("_")[:_LONGEST] or "_"
