"""The settings of an ablation: every entry of its list with every point of its grid, by name. Reads no file."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.ablation.names import name_files, name_values, shorten_fields
from megarl.config.ablation import AblationConfig, SettingConfig, flatten
from megarl.config.base import ConfigError
from megarl.config.dump import format_value

_FIELD = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MOST_CELLS = 1000
_LONGEST_NAME = 150
"""Bytes; a run's directory has seed, verb and time besides, and a file system's names end at 255."""
ONLY = "base"
"""The setting of an ablation that varies nothing but seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One setting, before its configuration is loaded."""

    name: str
    about: str
    fragments: tuple[str, ...]
    """Laid over the base, as the file names them."""
    values: Mapping[str, Any]
    """Then these fields: of the list's entry, then of the grid."""
    control: str | None = None
    """A setting of its own to compare with."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The values as `megarl train` takes them."""
        return tuple(as_override(field, value) for field, value in self.values.items())


def as_override(field: str, value: Any) -> str:
    """`a.b=value`."""
    return f"{field}={format_value(value)}"


def find_variants(config: AblationConfig) -> list[Variant]:
    """Settings in the order of the file, the grid's last field fastest. ConfigError with everything that is wrong."""
    axes = config.axes
    problems = list(_find_field_problems(config))
    listed = config.settings or [SettingConfig()]
    count = len(listed) * _product(len(values) for values in axes.values()) * len(config.seeds)
    if count > _MOST_CELLS:
        problems.append(f"{count} runs are more than {_MOST_CELLS}; make several ablations of them")
    if problems:
        raise ConfigError("\n".join(problems), problems)
    short = shorten_fields([*axes, *(field for entry in listed for field in flatten(entry.overrides))])
    variants = [
        _variant(entry, dict(zip(axes, point, strict=True)), short)
        for entry in listed
        for point in itertools.product(*axes.values())
    ]
    problems = list(_find_name_problems(variants, config.control))
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return variants


def _variant(entry: SettingConfig, point: Mapping[str, Any], short: Mapping[str, str]) -> Variant:
    own = flatten(entry.overrides)
    named = entry.name or "-".join(filter(None, (name_files(entry.fragments), name_values(own, short))))
    name = "-".join(filter(None, (named, name_values(point, short)))) or ONLY
    return Variant(
        name=name,
        about=entry.about,
        fragments=tuple(entry.fragments),
        values={**own, **point},
        control=entry.control,
    )


def _find_field_problems(config: AblationConfig) -> Iterator[str]:
    tables = {"overrides": flatten(config.overrides), "grid": config.axes}
    tables |= {f"settings.{at}.overrides": flatten(entry.overrides) for at, entry in enumerate(config.settings)}
    for where, table in tables.items():
        for field, value in table.items():
            if not _FIELD.fullmatch(field):
                yield f'{where}: "{field}" is no field of a run; expected a dotted path, such as train.steps'
            elif (text := _not_toml(value)) is not None:
                yield f"{where}.{field}: {text}"
    for at, entry in enumerate(config.settings):
        if both := sorted(config.axes.keys() & flatten(entry.overrides).keys()):
            yield f"settings.{at}.overrides: {', '.join(both)}: the grid has it too, and only one of them can count"


def _not_toml(value: Any) -> str | None:
    try:
        format_value(value)
    except TypeError as error:
        return str(error)
    return None


def _find_name_problems(variants: Sequence[Variant], control: str | None) -> Iterator[str]:
    names = [variant.name for variant in variants]
    for name, count in Counter(names).items():
        if count > 1:
            yield f'{count} settings have the name "{name}"; give them a `name` each'
    for name in names:
        if len(name.encode()) > _LONGEST_NAME:
            yield f'"{name[:40]}..." is too long for a name of directories; give the setting a shorter `name`'
    if control is not None and control not in names:
        yield f'control: there is no setting "{control}"; expected one of {", ".join(names)}'
    for variant in variants:
        if variant.control is not None and (variant.control not in names or variant.control == variant.name):
            others = ", ".join(name for name in names if name != variant.name)
            yield f'control of {variant.name}: found "{variant.control}", expected another setting: {others}'


def _product(sizes: Iterator[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
