"""TOML files and overrides become one checked configuration, or one ConfigError that names everything wrong."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from megarl.config.ablation import AblationConfig
from megarl.config.base import Config, ConfigError
from megarl.config.layers import Layers, Origin, Replacement
from megarl.config.problems import describe_validation_error, describe_value
from megarl.config.run import RunConfig
from megarl.config.theory import TheoryConfig
from megarl.config.toml_files import find_lost_backslashes, find_meant, read_files

_OVERRIDE_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_KINDS: dict[type[Config], tuple[str, str, str]] = {  # what it is, who reads it, an example
    RunConfig: (
        "a training configuration",
        "`megarl train`, `sft`, `plan`, `show` and `doctor` read",
        "configs/quickstart.toml",
    ),
    TheoryConfig: ("a theory configuration", "`megarl theory` reads", "configs/theory.toml"),
    AblationConfig: ("an ablation", "`megarl ablate` reads", "configs/ablations/random-reward-small.toml"),
}

Schema = TypeVar("Schema", bound=Config)


def load_config(path: Path, arguments: Sequence[str] = ()) -> RunConfig:
    """The run's configuration of a file, with fragments and overrides applied in order; see `load_section`."""
    return load_section(path, arguments, RunConfig)


def load_theory(path: Path | None, arguments: Sequence[str]) -> TheoryConfig:
    """The configuration of `megarl theory [CONFIG] [a.b=value ...]`; the defaults where no file is given.

    Raises ConfigError with all problems.
    """
    return load_section(*told_apart(path, arguments), TheoryConfig)


def load_section(path: Path | None, arguments: Sequence[str], schema: type[Schema]) -> Schema:
    """A configuration of any schema. path None: the schema's defaults are what the arguments change.

    An argument that ends in .toml and has no "=" is a fragment: a file laid over what came before, table by table (a
    new `kind`, `method` or `source` replaces its table). Any other is an override `a.b=value`: its value is TOML
    (`inf`, `[1, 2]`, `{kind = "random"}`); text that is not TOML is taken as a string, so `model.path=models/x` needs
    no quotes; a table replaces the table that was there; `false` takes an optional table away. Raises ConfigError
    with all problems.
    """
    sources = _lay(path, arguments, schema)
    layers, problems = sources.layers, list(sources.problems)
    for where, text in find_lost_backslashes(layers.table):
        problems.append(text + _describe_origin(layers, where, text, several=len(sources.files) > 1))
    config: Schema | None = None
    try:
        config = schema.model_validate(layers.table)
    except ValidationError as error:
        for where, text in describe_validation_error(error, schema):
            problems.append(text + _describe_origin(layers, where, text, several=len(sources.files) > 1))
    if config is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        heading = " + ".join(map(str, sources.files)) or "overrides"
        raise ConfigError("\n".join([f"{heading}: {count}", *(f"  {text}" for text in problems)]), problems)
    return config


def find_replacements(path: Path, arguments: Sequence[str]) -> list[Replacement]:
    """What one file of a run's configuration says and a later one takes back. Raises ConfigError as `load_config`."""
    return _lay(path, arguments, RunConfig).layers.replacements()


def is_fragment(argument: str) -> bool:
    """Whether an argument after CONFIG names a file and not an override."""
    return argument.endswith(".toml") and "=" not in argument


def is_override(argument: str) -> bool:
    """Whether an argument in CONFIG's place reads as a.b=value, whatever the value: model.path=/models/x too."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and _OVERRIDE_KEY.fullmatch(key.strip()) is not None


def told_apart(config: Path | None, arguments: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """(CONFIG, what comes after it) where CONFIG may be left out: the command line then has the first override in its
    place, which is told by its "="."""
    if config is not None and is_override(str(config)) and not config.exists():
        return None, [str(config), *arguments]
    return config, arguments


def source_files(arguments: Sequence[str]) -> list[Path]:
    """The fragments among the arguments after CONFIG, in order."""
    return [Path(argument) for argument in arguments if is_fragment(argument)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Files and overrides laid over each other, before the schema is asked."""

    layers: Layers
    files: list[Path]
    problems: list[str]
    """Of arguments that are neither."""


def _lay(path: Path | None, arguments: Sequence[str], schema: type[Config]) -> _Sources:
    files = [*([path] if path else []), *source_files(arguments)]
    tables = read_files(files)
    for file in files:
        _refuse_other_kind(file, tables[file], schema, fewest=1 if file == path else 2)
    layers = Layers(schema)
    problems: list[str] = []
    if path:
        layers.add_file(tables[path], str(path))
    for argument in arguments:
        if is_fragment(argument):
            layers.add_file(tables[Path(argument)], argument)
        elif problem := _apply_override(layers, argument, files):
            problems.append(problem)
    return _Sources(layers=layers, files=files, problems=problems)


def _refuse_other_kind(file: Path, table: Mapping[str, Any], schema: type[Config], *, fewest: int) -> None:
    """One line for a file that configures another verb, where each of its keys would be unknown.

    fewest: keys of the other schema that tell it; a fragment with a single one may have left out its section.
    """
    # A key that several kinds have (name) tells none.
    telling = [key for key in table if sum(key in kind.model_fields for kind in _KINDS) == 1]
    if schema not in _KINDS or any(key in schema.model_fields for key in telling):
        return
    wanted, _, example = _KINDS[schema]
    for other, (name, readers, _) in _KINDS.items():
        if sum(key in other.model_fields for key in telling) >= fewest:
            raise ConfigError(f"{file}: expected {wanted}, such as {example}; found {name}, which {readers}")


def _apply_override(layers: Layers, override: str, files: Sequence[Path]) -> str | None:
    """Lay one override over the layers; returns what is wrong with it, or None."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _OVERRIDE_KEY.fullmatch(key):
        meant = [] if equals else find_meant(override, files)
        hint = f"; did you mean {' or '.join(map(str, meant))}?" if meant else ""
        return f"argument {override!r}: expected a.b=value, e.g. train.steps=10, or a fragment FILE.toml{hint}"
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
    """Which override a problem comes from or, where there are several files, which file. Of a rule across keys (no
    `where`) all overrides and files that set the keys it names."""
    origins = [layers.origin_of(where)] if where else layers.origins_in(text)
    shown = [origin for origin in origins if origin and (several or not origin.is_file)]
    suffix = f" [{', '.join(origin.label for origin in shown)}]" if shown else ""
    return suffix + (_quoting(where, text, shown) or _bare_text(where, text, shown))


def _quoting(where: str, text: str, origins: Sequence[Origin]) -> str:
    """How to write a string that looks like a number, since a shell takes the quotes away."""
    if not text.startswith(f"{where}: expected a string") or not origins or origins[0].is_file:
        return ""
    key, _, value = (part.strip() for part in origins[0].text.partition("="))
    return f"; for text write '{where}=\"{value}\"'" if key == where and '"' not in value else ""


def _bare_text(where: str, text: str, origins: Sequence[Origin]) -> str:
    """That a table or an array was meant, whose value is not TOML: mostly a word without quotes."""
    if not re.match(rf"{re.escape(where)}: expected (a table|an array).*, found .* \(string\)", text):
        return ""
    value = origins[0].text.partition("=")[2].strip() if origins and not origins[0].is_file else ""
    if value[:1] not in ("{", "["):
        return ""
    return '; it is not TOML: words inside a table or an array need quotes, as in \'{a = "b"}\' or \'["a", "b"]\''
