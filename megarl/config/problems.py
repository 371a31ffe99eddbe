"""What pydantic found wrong, said in the user's terms: dotted paths without union tags, TOML values and types."""

import difflib
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from megarl.config.base import Config, ConfigError
from megarl.config.dump import format_value
from megarl.config.evaluation import name_benchmark
from megarl.config.fields import (
    describe_choices,
    describe_type,
    is_optional_section,
    is_plain_union,
    iter_fields,
    listed_section,
    named_section,
    section_types,
    union_tag,
)

_LONGEST_VALUE = 60
_TOML_TYPES = ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (list, "array"))


def describe_validation_error(error: ValidationError, schema: type[Config]) -> list[tuple[str, str]]:
    """(dotted path, problem) for every error; the path is "" for rules that span keys."""
    found: list[tuple[str, str]] = []
    for detail in error.errors():
        path, section, info = _locate(schema, detail["loc"])
        if detail["type"] == "value_error" and isinstance(detail["ctx"]["error"], ConfigError):
            name = path.removeprefix("eval.benchmarks.").partition(".")[0] if "benchmarks." in path else ""
            texts = detail["ctx"]["error"].problems
            found += (("", name_benchmark(text, name) if name else text) for text in texts)
        else:
            text = _describe(detail, path, section, info, schema)
            found.append((text.partition(":")[0], text))  # of a tag the text's path is longer than pydantic's
    return list(dict.fromkeys(found))  # of a plain union each type complains


def _locate(schema: type[Config], loc: tuple[int | str, ...]) -> tuple[str, type[Config] | None, FieldInfo | None]:
    """The user's path of pydantic's location, the section that holds its last key, and the field if there is one."""
    keys: list[str] = []
    candidates: list[type[Config]] = [schema]
    section: type[Config] | None = None
    info: FieldInfo | None = None
    for key in loc:
        if len(candidates) > 1:  # pydantic names the union's member by its tag; the user does not
            candidates = [member for member in candidates if (union_tag(member) or ("", ""))[1] == key]
            continue
        if info is not None and is_plain_union(info):  # pydantic names the type it tried
            break
        below = (named_section(info.annotation) or listed_section(info.annotation)) if info is not None else None
        if below and not candidates:
            candidates = [below]  # under a name of the user's choice, or a number
            keys.append(str(key))
            continue
        section = candidates[0] if candidates else None
        info = section.model_fields.get(str(key)) if section else None
        candidates = section_types(info.annotation) if info else []
        keys.append(str(key))
    return ".".join(keys), section, info


def _describe(
    detail: Mapping[str, Any],
    path: str,
    section: type[Config] | None,
    info: FieldInfo | None,
    schema: type[Config],
) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key{_suggest(path, section, schema)}"
        case "missing" if info:
            about = f" ({_first_sentence(info.description)})" if info.description else ""
            return f"{path}: missing; expected {describe_type(info)}{about}"
        case "union_tag_invalid" | "union_tag_not_found" | "model_type" | "model_attributes_type" if info:
            return _describe_table(path, info, detail["input"])
        case "finite_number" if info:
            expected = describe_type(info).replace("a number", "a finite number")
            return f"{path}: expected {expected}, found {describe_value(detail['input'])}"
        case _ if info:
            return f"{path}: expected {describe_type(info)}, found {describe_value(detail['input'])}"
        case _:
            return f"{path}: {detail['msg']}, found {describe_value(detail['input'])}"


def _describe_table(path: str, info: FieldInfo, value: Any) -> str:
    """What is wrong with a table that is none, or whose tag names no member of its union."""
    members = section_types(info.annotation)
    tags = [tag for member in members if (tag := union_tag(member))] if len(members) > 1 else []
    if not isinstance(value, Mapping):
        key = f"{path}.{tags[0][0]}" if tags else ""
        hint = f'; did you mean {key} = "{value}"?' if any(value == choice for _, choice in tags) else ""
        hint = hint or ("; {} turns it on with its defaults" if is_optional_section(info) else "")
        return f"{path}: expected {describe_type(info)}, found {describe_value(value)}{hint}"
    key, expected = f"{path}.{tags[0][0]}", describe_choices(tuple(choice for _, choice in tags))
    if tags[0][0] not in value:
        return f"{key}: missing; expected {expected}"
    found = value[tags[0][0]]
    close = difflib.get_close_matches(str(found), [str(choice) for _, choice in tags], n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    return f"{key}: expected {expected}, found {describe_value(found)}{hint}"


def _suggest(path: str, section: type[Config] | None, schema: type[Config]) -> str:
    """Where an unknown key was probably meant to go: the same path under another tag, a near name, another section."""
    parent, _, key = path.rpartition(".")
    prefix = f"{parent}." if parent else ""
    entries = list(iter_fields(schema))
    tags = [entry.when for entry in entries if entry.path == path and entry.when]
    if tags:
        return f"; it belongs to {' or '.join(tags)}"
    elsewhere = sorted({entry.path for entry in entries if entry.path.rpartition(".")[2] == key})
    near = difflib.get_close_matches(key, list(section.model_fields) if section else [], n=1, cutoff=0.75)
    if elsewhere and not near:
        return f"; did you mean {' or '.join(elsewhere)}?"
    near = near or difflib.get_close_matches(key, list(section.model_fields) if section else [], n=1)
    if near:
        also = f" ({key} is a key of {' and '.join(elsewhere)})" if elsewhere else ""
        return f"; did you mean {prefix}{near[0]}?{also}"
    far = difflib.get_close_matches(key, [entry.path.rpartition(".")[2] for entry in entries], n=1, cutoff=0.8)
    if far:
        homes = sorted({entry.path for entry in entries if entry.path.rpartition(".")[2] == far[0]})
        return f"; did you mean {' or '.join(homes)}?"
    valid = ", ".join(section.model_fields) if section else ""
    return f"; valid keys of {parent or 'the top level'}: {valid}" if valid else ""


def describe_value(value: Any) -> str:
    """A value as TOML with its type, cut where it is long: '1.5 (float)'."""
    kind = next((name for type_, name in _TOML_TYPES if isinstance(value, type_)), None)
    if kind is None:
        kind = "table" if isinstance(value, Mapping) else "date" if isinstance(value, date | time) else "value"
    try:
        text = format_value(value)
    except TypeError:
        text, kind = repr(value), type(value).__name__
    return f"{text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + '...'} ({kind})"


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")
