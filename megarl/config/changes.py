"""What two configurations of one run differ in, and whether the run may go on with the later one.

Which fields may change is said at the fields (`facts.MayChange`); all others would make it another run.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.config.base import Config
from megarl.config.dump import format_value
from megarl.config.facts import Effect, MayChange
from megarl.config.fields import iter_fields, named_section
from megarl.config.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """One value that is another now; a table that was chosen anew, turned on or off is one value."""

    path: str
    old: Any
    """None: absent."""
    new: Any
    effect: Effect | None
    """None: the field does not say that it may change."""

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


def find_changes(old: RunConfig, new: RunConfig) -> list[ConfigChange]:
    """In the order of the schema."""
    return list(_changes(old, new, "", None))


def find_refusals(changes: Sequence[ConfigChange], allowed: Sequence[str]) -> list[str]:
    """A problem for each change that is neither safe nor allowed, and for each allowed path that the schema lacks.

    allowed: paths of fields or tables; what is below an allowed table is allowed.
    """
    problems = [
        f"{change}: the run would go on as another one; set it back, or allow it with --allow-change {change.path}"
        for change in changes
        if change.effect is None and not is_allowed(change, allowed)
    ]
    known = list(dict.fromkeys(entry.path for entry in iter_fields(RunConfig)))
    for path in allowed:
        # Free tables (vllm_overrides) have keys that the schema does not know.
        if path not in known and not any(change.path == path for change in changes):
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"--allow-change {path}: there is no such field{hint}")
    return problems


def is_allowed(change: ConfigChange, allowed: Sequence[str]) -> bool:
    """Whether the change's path, or a table that it is in, is among those allowed."""
    return any(change.path == path or change.path.startswith(f"{path}.") for path in allowed)


def allows_any(section: str, allowed: Sequence[str]) -> bool:
    """Whether the section, or something that is in it, is among those allowed."""
    return any(path == section or path.startswith(f"{section}.") for path in allowed)


def describe_effect(change: ConfigChange, config: RunConfig) -> str:
    """What becomes of the change in the run that goes on with `config`, in a few words."""
    match change.effect:
        case None:
            return "allowed"
        case "none":
            return "taken"
        case "rounding":
            return "taken; from here on equal to a run without the change but for rounding"
        case "length":
            follows = ", ".join(config.follows_length)
            return f"taken; {follows} is from here on as in a run of {change.new} steps" if follows else "taken"


def _changes(old: Config, new: Config, prefix: str, inherited: Effect | None) -> Iterator[ConfigChange]:
    """Of two sections of one class."""
    for name, info in type(new).model_fields.items():
        mine, theirs = getattr(old, name), getattr(new, name)
        if mine == theirs:
            continue
        marks = [mark for mark in info.metadata if isinstance(mark, MayChange)]
        effect = marks[0].effect if marks else inherited
        path = f"{prefix}{name}"
        if isinstance(mine, Config) and type(mine) is type(theirs):
            yield from _changes(mine, theirs, f"{path}.", effect)
        elif named_section(info.annotation):
            yield from _named_changes(mine, theirs, f"{path}.", effect)
        else:
            yield ConfigChange(path=path, old=mine, new=theirs, effect=effect)


def _named_changes(
    old: Mapping[str, Config], new: Mapping[str, Config], prefix: str, effect: Effect | None
) -> Iterator[ConfigChange]:
    """Of tables under names of the user's choice; one that only one of both has is one value."""
    for name in dict.fromkeys((*old, *new)):
        mine, theirs = old.get(name), new.get(name)
        if mine is not None and theirs is not None:
            yield from _changes(mine, theirs, f"{prefix}{name}.", effect)
        else:
            yield ConfigChange(path=f"{prefix}{name}", old=mine, new=theirs, effect=effect)


def _shown(value: Any) -> str:
    if value is None:
        return "(absent)"
    return format_value(value.model_dump(exclude_none=True) if isinstance(value, Config) else value)
