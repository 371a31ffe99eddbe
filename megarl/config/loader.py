"""A TOML file and overrides become one checked RunConfig, or one ConfigError that names everything wrong with them."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megarl.config.base import ConfigError
from megarl.config.problems import describe_validation_error, describe_value
from megarl.config.run import RunConfig

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a file, with overrides `a.b=value` applied in order.

    An override's value is TOML (`inf`, `[1, 2]`, `{kind = "random"}`); text that is not TOML is taken as a string, so
    `model.path=models/x` needs no quotes. A table replaces the file's table. Raises ConfigError with all problems.
    """
    table = _read_toml(path)
    applied: dict[str, str] = {}
    problems = [text for override in overrides if (text := _apply_override(table, override, applied))]
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(table)
    except ValidationError as error:
        for where, text in describe_validation_error(error, RunConfig):
            problems.append(text + _origin(where, applied) + _quoting(where, text, applied))
    if config is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{path}: {count}", *(f"  {text}" for text in problems)]), problems)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_near_files(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a TOML file: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_describe_syntax(path, text, str(error))) from None


def _near_files(path: Path) -> str:
    """What the user may have meant: names like it in its directory."""
    if not path.parent.is_dir():
        return f"; the directory {path.parent} does not exist"
    names = sorted(entry.name for entry in path.parent.glob("*.toml"))
    near = difflib.get_close_matches(path.name, names, n=3) or difflib.get_close_matches(f"{path.name}.toml", names)
    if near:
        return f"; did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return f"; {path.parent} holds {', '.join(names[:10])}" if names else f"; {path.parent} holds no .toml file"


def _describe_syntax(path: Path, text: str, message: str) -> str:
    """tomllib's message as file:line:column with the line itself and a caret."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    lines = text.splitlines() or [""]
    what = message[: place.start()] if place else message
    if place is None or place.group(1) is None:
        row, column = len(lines), len(lines[-1]) + 1
    else:
        row, column = int(place.group(1)), int(place.group(2))
    shown = lines[row - 1] if row <= len(lines) else ""
    return f"{path}:{row}:{column}: TOML syntax: {what}\n  {shown}\n  {' ' * (column - 1)}^"


def _apply_override(table: dict[str, Any], override: str, applied: dict[str, str]) -> str | None:
    """Write one override into the table and note it in `applied`; returns what is wrong with it, or None."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        return f"override {override!r}: expected a.b=value, e.g. train.steps=10"
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            where = ".".join(parents[: depth + 1])
            return f"override {override!r}: {where} is not a table, the file has {describe_value(table)}"
    table[last] = _parse_value(text.strip())
    applied[key] = override
    return None


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _origin(where: str, applied: dict[str, str]) -> str:
    """Says which override a problem comes from."""
    for key, override in applied.items():
        if where and (where == key or where.startswith(f"{key}.") or key.startswith(f"{where}.")):
            return f" [override {override!r}]"
    return ""


def _quoting(where: str, text: str, applied: dict[str, str]) -> str:
    """How to write a string that looks like a number, since a shell takes the quotes away."""
    if where not in applied or not text.startswith(f"{where}: expected a string"):
        return ""
    value = applied[where].partition("=")[2].strip()
    return f"; for text write '{where}=\"{value}\"'" if '"' not in value else ""
