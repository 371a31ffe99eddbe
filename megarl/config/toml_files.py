"""TOML files as tables; one that cannot be read is a ConfigError with the place, or the files that may be meant."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megarl.config.base import ConfigError

_CLOSE_NAME = 0.8
"""Similarity from which a name in another directory is taken for a slip of the hand."""


def read_files(files: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Every file's table; one ConfigError for all that cannot be read."""
    tables: dict[Path, dict[str, Any]] = {}
    problems: list[str] = []
    for file in dict.fromkeys(files):
        try:
            tables[file] = _read_toml(file, files)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return tables


def find_lost_backslashes(value: Any, where: str = "") -> list[tuple[str, str]]:
    """(dotted path, problem) of every string with a backspace or form feed: a quoted LaTeX \\boxed or \\frac.

    TOML's double quotes read \\b and \\f as these, so the model would be shown "oxed" and nobody would notice.
    """
    if isinstance(value, Mapping):
        return [
            found
            for key, inner in value.items()
            for found in find_lost_backslashes(inner, f"{where}.{key}" if where else str(key))
        ]
    if isinstance(value, list):
        return [found for inner in value for found in find_lost_backslashes(inner, where)]
    if not isinstance(value, str):
        return []
    for letter, character, name in (("b", "\b", "backspace"), ("f", "\f", "form feed")):
        if character in value:
            word = letter + value.partition(character)[2].partition(" ")[0][:12]
            text = (
                f"{where}: expected text, found a {name} before {word[1:]!r}; TOML reads \\{letter} in double quotes so"
            )
            return [(where, f"{text}: write \\\\{word} there, or the text in single quotes")]
    return []


def find_meant(name: str, files: Sequence[Path]) -> list[Path]:
    """Existing TOML files for which a name without its ending or its directory may stand.

    Looked for where the name says, beside the `files` of the command, and in `configs` and `methods` next to those.
    """
    path = _with_ending(Path(name))
    directories = _directories([path, *files])
    exact = [directory / path.name for directory in directories if (directory / path.name).is_file()]
    there = {entry.name: entry for directory in directories for entry in sorted(directory.glob("*.toml"))}
    return exact or [there[near] for near in difflib.get_close_matches(path.name, there, n=3, cutoff=_CLOSE_NAME)]


def _with_ending(path: Path) -> Path:
    return path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")


def _directories(paths: Sequence[Path]) -> list[Path]:
    """Where the paths are, and what lies next to that; those that exist, each once."""
    own = [path.parent for path in paths]
    beside = [parent / name for parent in own for name in ("configs", "configs/methods", "methods")]
    beside += [parent.parent / "methods" for parent in own if parent.name]
    found: dict[Path, Path] = {}
    for directory in [*own, *beside]:
        if directory.is_dir():
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def _read_toml(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_near_files(path, files)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a TOML file, found a directory{_near_files(path, files)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a TOML file: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_describe_syntax(path, text, str(error))) from None


def _near_files(path: Path, files: Sequence[Path]) -> str:
    """What the user may have meant: names like it in its directory, or the same name elsewhere."""
    here = sorted(entry.name for entry in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = [path.parent / name for name in difflib.get_close_matches(_with_ending(path).name, here, n=3)]
    near = near or find_meant(str(path), [file for file in files if file != path])
    if near:
        return f"; did you mean {' or '.join(map(str, near))}?"
    if not path.parent.is_dir():
        return f"; the directory {path.parent} does not exist"
    return f"; {path.parent} holds {', '.join(here[:10])}" if here else f"; {path.parent} holds no .toml file"


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
