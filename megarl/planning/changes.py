"""A configuration with other values, tried before they are advised."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from megarl.config.run import RunConfig

Changes = Mapping[str, Any]
"""Dotted path of a section's field -> new value."""


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """The configuration with other values, unchecked."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        section, _, name = path.rpartition(".")
        sections.setdefault(section, {})[name] = value
    for section, values in sections.items():
        config = _updated(config, section.split("."), values)
    return config


def loads(config: RunConfig, changes: Changes) -> bool:
    """Whether the configuration with these changes keeps every rule that spans its sections."""
    try:
        # TOML has no null: what is absent is left out, as in a file.
        RunConfig.model_validate(changed(config, changes).model_dump(exclude_none=True))
    except ValidationError:
        return False
    return True


def _updated(config: Any, path: list[str], values: Mapping[str, Any]) -> Any:
    inner = values if not path else {path[0]: _updated(getattr(config, path[0]), path[1:], values)}
    return config.model_copy(update=dict(inner))
