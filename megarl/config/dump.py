"""A configuration as TOML text that loads back to an equal one; None, which TOML lacks, is left out.

Not by tomli_w, because a value must fit on one line: advice is given as an override (`a.b=[1, 2]`), and tomli_w puts
every element of an array on a line of its own. It also writes a free table (`vllm_overrides`) as a section, as if its
keys were the schema's, and no comments.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from megarl.config.base import Config

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dump_config(config: Config, *, comments: Mapping[str, tuple[str, ...]] | None = None) -> str:
    """TOML text of a configuration: each section a table, free tables (`vllm_overrides`) inline.

    `comments` maps a section's dotted path ("" is the top) to lines printed as comments at its head.
    """
    lines: list[str] = []
    _append_section(lines, config, "", comments or {})
    return "\n".join(lines).strip("\n") + "\n"


def format_value(value: Any) -> str:
    """One TOML value on one line. Raises TypeError for what TOML cannot hold."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return _quote(value)
        case date() | time():
            return value.isoformat()
        case Mapping():
            return "{" + ", ".join(f"{format_key(key)} = {format_value(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(format_value(item) for item in value) + "]"
    raise TypeError(f"TOML has no value for {value!r} of type {type(value).__name__}")


def format_key(key: str) -> str:
    """A key as TOML writes it: bare where possible, quoted otherwise."""
    return key if _BARE_KEY.fullmatch(key) else _quote(key)


def _quote(text: str) -> str:
    # A TOML basic string takes JSON's escapes, except that DEL must be escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _append_section(lines: list[str], section: Config, path: str, comments: Mapping[str, tuple[str, ...]]) -> None:
    scalars: list[str] = []
    subsections: list[tuple[str, Config]] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Config):
            subsections.append((name, value))
        elif isinstance(value, dict) and value and all(isinstance(item, Config) for item in value.values()):
            subsections += [(f"{name}.{format_key(key)}", item) for key, item in value.items()]
        elif value is not None:
            scalars.append(f"{name} = {format_value(value)}")
    body = [f"# {comment}" for comment in comments.get(path, ())] + scalars
    if path and (body or not subsections):
        lines += ["", f"[{path}]"]
    lines += body
    for name, value in subsections:
        _append_section(lines, value, f"{path}.{name}" if path else name, comments)
