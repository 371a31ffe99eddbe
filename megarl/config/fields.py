"""The schema as a list: every field with its dotted path, type in words, default and documentation.

A tagged union (`data.train`, `reward.verifier`, `objective.advantage`) contributes the fields of all its members
under one path; `FieldEntry.when` says under which tag a field is valid. Of tables under names of the user's choice
(`eval.benchmarks`) the fields are listed once, under "NAME".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from megarl.config.base import Config

_TYPE_WORDS: dict[Any, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "an array",
    tuple: "an array",
    dict: "a table",
}


ANY_NAME = "NAME"
"""In a path, where the user chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldEntry:
    """One field of the schema."""

    path: str
    """Dotted, as the user writes it; no union tags."""
    info: FieldInfo
    when: str | None = None
    """The tag that selects the union member the field belongs to, e.g. 'objective.advantage.method = "grpo"'."""

    @property
    def is_section(self) -> bool:
        return bool(section_types(self.info.annotation))

    @property
    def is_optional_section(self) -> bool:
        """A table whose absence means "off"."""
        return is_optional_section(self.info)


def section_types(annotation: Any) -> list[type[Config]]:
    """The Config classes an annotation admits: none for a plain value, one for a section, several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) in (Literal, dict, list, tuple, NoneType):
        return []
    return [found for part in get_args(annotation) for found in section_types(part)]


def named_section(annotation: Any) -> type[Config] | None:
    """The Config class of tables under names of the user's choice: that of `dict[str, BenchmarkConfig]`."""
    found = section_types(get_args(annotation)[1]) if get_origin(annotation) is dict else []
    return found[0] if found else None


def listed_section(annotation: Any) -> type[Config] | None:
    """The Config class of a list of tables: that of `list[SettingConfig]`."""
    found = section_types(get_args(annotation)[0]) if get_origin(annotation) is list else []
    return found[0] if found else None


def is_optional_section(info: FieldInfo) -> bool:
    """Whether a field is a table that may be absent: `tis: TruncatedImportance | None`."""
    return bool(section_types(info.annotation)) and NoneType in get_args(info.annotation)


def is_plain_union(info: FieldInfo) -> bool:
    """Whether a field takes values of several plain types: `path: str | list[str]`."""
    annotation = _without_none(info.annotation)
    return get_origin(annotation) is UnionType and not section_types(annotation)


def union_tag(section: type[Config]) -> tuple[str, str] | None:
    """(field, value) of the single-valued Literal that tells a union's member, or None."""
    for name, info in section.model_fields.items():
        values = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        if len(values) == 1:
            return name, values[0]
    return None


def iter_fields(section: type[Config], prefix: str = "", when: str | None = None) -> Iterator[FieldEntry]:
    """Every field below a section in the order of the schema; a section itself comes before its fields."""
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        yield FieldEntry(path=path, info=info, when=when)
        if named := named_section(info.annotation):
            yield from iter_fields(named, f"{path}.{ANY_NAME}.", when)
        members = section_types(info.annotation)
        for member in members:
            tag = union_tag(member) if len(members) > 1 else None
            yield from iter_fields(member, f"{path}.", f'{path}.{tag[0]} = "{tag[1]}"' if tag else when)


def describe_type(info: FieldInfo) -> str:
    """What a value must be, in words: 'an integer >= 1', 'one of "none", "full"', 'a table'."""
    annotation = _without_none(info.annotation)
    if is_optional_section(info):
        return "a table, or false (off)"
    if section_types(annotation):
        return "a table"
    if get_origin(annotation) is Literal:
        return describe_choices(get_args(annotation))
    words = _words(annotation)
    bounds = []
    for constraint in info.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            bound = getattr(constraint, attribute, None)
            if bound is not None:
                bounds.append(f"{sign} {bound:g}")
        pattern = getattr(constraint, "pattern", None)
        if pattern is not None:
            bounds.append(f"matching {pattern}")
    return " ".join([words, " and ".join(bounds)]) if bounds else words


def describe_choices(values: tuple[Any, ...]) -> str:
    """'one of "a", "b"', or '"a"' when there is one."""
    quoted = ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
    return quoted if len(values) == 1 else f"one of {quoted}"


def _words(annotation: Any) -> str:
    if get_origin(annotation) is UnionType:
        return " or ".join(map(_words, get_args(annotation)))
    if get_origin(annotation) in (list, tuple):
        elements = {str: " of strings", int: " of integers"}
        return f"an array{elements.get(_without_none(get_args(annotation)[0]), '')}"
    return _TYPE_WORDS.get(get_origin(annotation) or annotation, str(annotation))


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None` and of `Annotated[X, ...]`."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if NoneType in get_args(annotation) and len(parts) == 1:
        return _without_none(parts[0])
    return annotation
