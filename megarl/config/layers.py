"""Files and overrides laid over each other; every value knows where it comes from.

Tables merge key by key, later layers win. Where a layer chooses another member of a tagged union (`kind`, `method`,
`source`), what files said under the old tag goes: bounds of one clip method mean nothing in another, even where the
keys have one name. What overrides said stays, since somebody just typed it; where the new member has no such key it is
an unknown key. `false` for an optional table, or for one under a name of the user's choice, takes it away.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.config.base import Config
from megarl.config.fields import is_optional_section, named_section, section_types, union_tag


@dataclass(frozen=True, slots=True)
class _Named:
    """Stands for a table of tables, one of this class under each name."""

    section: type[Config]


_Schemas = Sequence[type[Config] | _Named]
"""What a table may be: members of a union."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from."""

    text: str
    """A file's path, or an override as it was typed."""
    is_file: bool

    @property
    def label(self) -> str:
        return self.text if self.is_file else f"override {self.text!r}"


@dataclass(frozen=True, slots=True)
class Replacement:
    """What one file said and a later one took back."""

    path: str
    value: Any
    origin: Origin
    by_path: str
    """`path` itself, the tag whose new value dropped the table's keys, or the table that was turned off."""
    by_value: Any
    by: Origin


class Layers:
    """One table made of several layers, in the order they are added."""

    def __init__(self, schema: type[Config]) -> None:
        self.table: dict[str, Any] = {}
        self._schema = schema
        self._origins: dict[str, Origin] = {}
        self._replacements: list[Replacement] = []

    def add_file(self, table: Mapping[str, Any], name: str) -> None:
        """Lay a parsed TOML file over what there is."""
        self._merge(self.table, "", table, [self._schema], Origin(name, is_file=True))

    def add_override(self, keys: Sequence[str], value: Any, override: str) -> tuple[str, Any] | None:
        """Set one value; a table replaces the table that was there. Returns (path, value) of what stands in the way
        where a parent is not a table, else None."""
        origin = Origin(override, is_file=False)
        table, path = self.table, ""
        sections: _Schemas = [self._schema]
        for parent in keys[:-1]:
            path, sections = _join(path, parent), _sections_below(sections, parent)
            if parent not in table:
                table[parent], self._origins[path] = {}, origin
            table = table[parent]
            if not isinstance(table, dict):
                return path, table
        if isinstance(value, Mapping):
            self._remove(table, path, keys[-1])
        self._merge(table, path, {keys[-1]: value}, sections, origin)
        return None

    def origin_of(self, where: str) -> Origin | None:
        """The origin of a dotted path, else of the nearest table above it that a layer made."""
        while where and where not in self._origins:
            where = where.rpartition(".")[0]
        return self._origins.get(where)

    def origins_in(self, text: str) -> list[Origin]:
        """Origins of the values that a message names, each once. A name without dots is a key in or beside the last
        dotted path before it: "train.steps 3 is not a multiple of every" names train.every, where that was set."""
        found: list[Origin | None] = []
        last = ""
        for name in _NAME.findall(text):
            if name.partition(".")[0] in self._schema.model_fields and "." in name:
                last = name
                found.append(self._origins.get(name))
            else:
                near = (_join(last, name), _join(last.rpartition(".")[0], name))
                found += (self._origins[path] for path in near if self._is_value(path))
        return list(dict.fromkeys(origin for origin in found if origin))

    def replacements(self) -> list[Replacement]:
        """Where two files disagree, in the order of the later file; what an override decides is left out."""
        typed = {path for path, origin in self._origins.items() if not origin.is_file}
        return [found for found in self._replacements if not typed & {found.path, found.by_path}]

    def _is_value(self, path: str) -> bool:
        """Whether a layer set this path, and not to a table."""
        return path in self._origins and not any(name.startswith(f"{path}.") for name in self._origins)

    def _merge(
        self,
        table: dict[str, Any],
        path: str,
        layer: Mapping[str, Any],
        sections: _Schemas,
        origin: Origin,
    ) -> None:
        self._switch_member(table, path, layer, sections, origin)
        for key, value in layer.items():
            here = _join(path, key)
            if value is False and _is_optional(sections, key):
                self._note_replaced(here, table.get(key), here, value, origin)
                self._remove(table, path, key)
            elif isinstance(value, Mapping):
                if not isinstance(table.get(key), dict):
                    self._note_replaced(here, table.get(key), here, value, origin)
                    self._forget(here)
                    table[key], self._origins[here] = {}, origin
                self._merge(table[key], here, value, _sections_below(sections, key), origin)
            else:
                self._note_replaced(here, table.get(key), here, value, origin)
                self._forget(here)
                table[key], self._origins[here] = value, origin  # in its place: a grid is named in the file's order

    def _switch_member(
        self,
        table: dict[str, Any],
        path: str,
        layer: Mapping[str, Any],
        sections: _Schemas,
        origin: Origin,
    ) -> None:
        tag = _tag_of(sections)
        if tag is None or tag[0] not in layer or table.get(*tag) == layer[tag[0]]:
            return
        self._origins[path] = origin
        for key in list(table):
            source = self._origins.get(_join(path, key))
            if source is None or source.is_file:
                self._note_replaced(_join(path, key), table[key], _join(path, tag[0]), layer[tag[0]], origin)
                self._remove(table, path, key)

    def _note_replaced(self, path: str, value: Any, by_path: str, by_value: Any, by: Origin) -> None:
        """Keep what a file is about to take from another one, value by value."""
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                self._note_replaced(_join(path, key), inner, by_path, by_value, by)
            return
        origin = self._origins.get(path)
        if origin and origin.is_file and by.is_file and origin != by and (path, value) != (by_path, by_value):
            self._replacements.append(Replacement(path, value, origin, by_path, by_value, by))

    def _remove(self, table: dict[str, Any], path: str, key: str) -> None:
        table.pop(key, None)
        self._forget(_join(path, key))

    def _forget(self, here: str) -> None:
        """Where it comes from, and all that is below it."""
        for name in [name for name in self._origins if name == here or name.startswith(f"{here}.")]:
            del self._origins[name]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _sections_below(sections: _Schemas, key: str) -> _Schemas:
    for section in sections:
        if isinstance(section, _Named):
            return [section.section]
        if key in section.model_fields:
            annotation = section.model_fields[key].annotation
            named = named_section(annotation)
            return [_Named(named)] if named else section_types(annotation)
    return []


def _is_optional(sections: _Schemas, key: str) -> bool:
    return any(
        isinstance(section, _Named) or (key in section.model_fields and is_optional_section(section.model_fields[key]))
        for section in sections
    )


def _tag_of(sections: _Schemas) -> tuple[str, Any] | None:
    """(key, default) of the tag that tells a union's members, None where there is one section or none."""
    if len(sections) < 2:
        return None
    tags = [(one, tag) for one in sections if not isinstance(one, _Named) and (tag := union_tag(one))]
    defaults = [tag[1] for section, tag in tags if not section.model_fields[tag[0]].is_required()]
    return (tags[0][1][0], defaults[0] if defaults else None) if tags else None
