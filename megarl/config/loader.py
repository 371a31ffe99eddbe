"""TOML files and overrides become one checked configuration, or one ConfigError that names everything wrong."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from megarl.config.base import Config, ConfigError
from megarl.config.layers import Layers, Origin
from megarl.config.problems import describe_validation_error, describe_value
from megarl.config.run import RunConfig

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

Schema = TypeVar("Schema", bound=Config)


def load_config(path: Path, arguments: Sequence[str] = ()) -> RunConfig:
    """The run's configuration of a file, with fragments and overrides applied in order; see `load_section`."""
    return load_section(path, arguments, RunConfig)


def load_section(path: Path | None, arguments: Sequence[str], schema: type[Schema]) -> Schema:
    """A configuration of any schema. path None: the schema's defaults are what the arguments change.

    An argument that ends in .toml and has no "=" is a fragment: a file laid over what came before, table by table (a
    new `kind`, `method` or `source` replaces its table). Any other is an override `a.b=value`: its value is TOML
    (`inf`, `[1, 2]`, `{kind = "random"}`); text that is not TOML is taken as a string, so `model.path=models/x` needs
    no quotes; a table replaces the table that was there; `false` takes an optional table away. Raises ConfigError
    with all problems.
    """
    files = [*([path] if path else []), *source_files(arguments)]
    tables = _read_all(files)
    layers = Layers(schema)
    problems: list[str] = []
    if path:
        layers.add_file(tables[path], str(path))
    for argument in arguments:
        if is_fragment(argument):
            layers.add_file(tables[Path(argument)], argument)
        elif problem := _apply_override(layers, argument):
            problems.append(problem)
    config: Schema | None = None
    try:
        config = schema.model_validate(layers.table)
    except ValidationError as error:
        for where, text in describe_validation_error(error, schema):
            problems.append(text + _describe_origin(layers, where, text, several=len(files) > 1))
    if config is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        heading = " + ".join(map(str, files)) or "overrides"
        raise ConfigError("\n".join([f"{heading}: {count}", *(f"  {text}" for text in problems)]), problems)
    return config


def is_fragment(argument: str) -> bool:
    """Whether an argument after CONFIG names a file and not an override."""
    return argument.endswith(".toml") and "=" not in argument


def source_files(arguments: Sequence[str]) -> list[Path]:
    """The fragments among the arguments after CONFIG, in order."""
    return [Path(argument) for argument in arguments if is_fragment(argument)]


def _read_all(files: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Every file's table; one ConfigError for all that cannot be read."""
    tables: dict[Path, dict[str, Any]] = {}
    problems: list[str] = []
    for file in dict.fromkeys(files):
        try:
            tables[file] = _read_toml(file)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return tables


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


def _apply_override(layers: Layers, override: str) -> str | None:
    """Lay one override over the layers; returns what is wrong with it, or None."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        return f"argument {override!r}: expected a.b=value, e.g. train.steps=10, or a fragment FILE.toml"
    in_the_way = layers.add_override(key.split("."), _parse_value(text.strip()), override)
    if in_the_way:
        return f"override {override!r}: {in_the_way[0]} is not a table, it is {describe_value(in_the_way[1])}"
    return None


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _describe_origin(layers: Layers, where: str, text: str, *, several: bool) -> str:
    """Which override or, where there are several, which file a problem comes from. Of a rule across keys (no `where`)
    all files and overrides that set the keys it names."""
    if where:
        origin = layers.origin_of(where)
        shown = [origin] if origin and (several or not origin.is_file) else []
    else:
        shown = layers.origins_in(text) if several else []
    suffix = f" [{', '.join(origin.label for origin in shown)}]" if shown else ""
    return suffix + _quoting(where, text, shown)


def _quoting(where: str, text: str, origins: Sequence[Origin]) -> str:
    """How to write a string that looks like a number, since a shell takes the quotes away."""
    if not text.startswith(f"{where}: expected a string") or not origins or origins[0].is_file:
        return ""
    key, _, value = (part.strip() for part in origins[0].text.partition("="))
    return f"; for text write '{where}=\"{value}\"'" if key == where and '"' not in value else ""
