"""Runs that differ in their seed alone are one group; what else differs between runs is a table.

`name` and the section `logging` say where a run writes and what it is called: they differ without making a difference,
and no group is split by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.config.dump import format_value
from megarl.report.colours import CYCLE, DASHES
from megarl.report.run_data import RunData

SEED = "train.seed"
_ABSENT = "–"
_LONGEST_LABEL = 56


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one setting."""

    index: int
    label: str
    runs: tuple[RunData, ...]

    @property
    def colour(self) -> str:
        return CYCLE[self.index % len(CYCLE)]

    @property
    def dash(self) -> int:
        return self.index % len(DASHES)

    @property
    def seeds(self) -> str:
        """ "0, 1, 2"; sorted, and "–" where none is known."""
        known = sorted(run.seed for run in self.runs if run.seed is not None)
        return ", ".join(map(str, known)) or _ABSENT


def group_runs(runs: Sequence[RunData], settings: Sequence[str] | None = None) -> list[Group]:
    """Groups in the order of their first runs. `settings`: of an ablation, each run's; else the configurations tell."""
    members: dict[Any, list[RunData]] = {}
    for index, run in enumerate(runs):
        if settings is not None:
            key: Any = settings[index]
        else:
            # A run without a configuration is like no other.
            key = _identity(run) if run.config else run.run.path
        members.setdefault(key, []).append(run)
    labels = list(members) if settings is not None else _labels(list(members.values()))
    return [
        Group(index=index, label=label, runs=tuple(listed))
        for index, (label, listed) in enumerate(zip(labels, members.values(), strict=True))
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path: value. Lists, and what is in them, are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_same_setting(path: str) -> bool:
    """Whether a field may differ within a group."""
    return path in (SEED, "name") or path.startswith("logging.")


def _identity(run: RunData) -> tuple[tuple[str, str], ...]:
    return tuple(
        sorted((path, repr(value)) for path, value in flatten(run.config).items() if not is_same_setting(path))
    )


@dataclass(frozen=True, kw_only=True)
class Differences:
    """A table; narrower than it is long."""

    heads: list[str]
    rows: list[list[str]]
    num_fields: int
    """Fields that differ, the seed and what is no setting apart."""


def differing_fields(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Field: its value in each group, as TOML; those that are equal in all are left out."""
    flats = [flatten(group.runs[0].config) for group in groups]
    paths = dict.fromkeys(path for flat in flats for path in flat if not is_same_setting(path))
    found = {path: [_shown(flat, path) for flat in flats] for path in paths}
    return {path: values for path, values in found.items() if len(set(values)) > 1}


def tabulate_differences(groups: Sequence[Group]) -> Differences:
    """A row a field or a row a group, whichever is narrower; seeds and numbers of runs with them."""
    fields = differing_fields(groups)
    columns = {**fields, SEED: [group.seeds for group in groups], "runs": [str(len(group.runs)) for group in groups]}
    labels = [group.label for group in groups]
    if len(groups) < len(columns):
        rows = [[name, *values] for name, values in columns.items()]
        return Differences(heads=["field", *labels], rows=rows, num_fields=len(fields))
    cells = [[values[index] for values in columns.values()] for index in range(len(groups))]
    rows = [[label, *values] for label, values in zip(labels, cells, strict=True)]
    return Differences(heads=["setting", *columns], rows=rows, num_fields=len(fields))


def _shown(flat: Mapping[str, Any], path: str) -> str:
    return format_value(flat[path]) if path in flat else _ABSENT


def _labels(members: Sequence[Sequence[RunData]]) -> list[str]:
    """What tells the groups apart: their differing fields, or the runs' names where those are too many."""
    groups = [Group(index=index, label="", runs=tuple(runs)) for index, runs in enumerate(members)]
    fields = differing_fields(groups)
    names = _short_names(list(fields))
    labels = [
        ", ".join(f"{names[path]}={values[index]}".replace('"', "") for path, values in fields.items())
        for index in range(len(groups))
    ]
    own = [str(runs[0].config.get("name", runs[0].name)) for runs in members]
    if len(groups) == 1 or max(map(len, labels)) > _LONGEST_LABEL or not all(labels):
        labels = own
    repeated = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({chr(ord('a') + index)})"
        if label in repeated and index < 26
        else f"{label} ({index + 1})"
        if label in repeated
        else label
        for index, label in enumerate(labels)
    ]


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Of each path its last two parts, as many more as tell it from the others."""
    short = {}
    for path in paths:
        parts = path.split(".")
        for count in range(min(2, len(parts)), len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in paths) == 1:
                break
        short[path] = name
    return short
