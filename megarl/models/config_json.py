"""Values of a config.json, each of the type it must have, or a ModelError that names it."""

import json
import sys
from pathlib import Path
from typing import Any


class ModelError(ValueError):
    """The model or its layout cannot work; the text says what was expected, what was found and what to change."""


def load_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError where there is none."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"expected a Hugging Face checkpoint directory with config.json, found no {file}; "
            "point the model path at such a directory"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not readable JSON ({error}); restore the file") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(raw).__name__}; restore the file")
    return raw


def read_integer(raw: dict[str, Any], name: str, *, default: int | None = None) -> int:
    """A whole number; `default` where the key is absent, which null is not."""
    value = raw.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"expected an integer {name}, found {value!r}; correct config.json")
    return value


def read_number(raw: dict[str, Any], name: str, *, default: float | None = None) -> float:
    """A number; `default` where the key is absent, which null is not."""
    value = raw.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < sys.float_info.max:
        raise ModelError(f"expected a number {name}, found {value!r}; correct config.json")
    return float(value)


def read_positive(raw: dict[str, Any], name: str, *, default: float | None = None) -> float:
    """A number above 0; `default` where the key is absent, which null is not."""
    value = read_number(raw, name, default=default)
    if value <= 0:
        raise ModelError(f"expected a number {name} above 0, found {value:g}; correct config.json")
    return value


def read_boolean(raw: dict[str, Any], name: str) -> bool:
    """true or false; false where the key is absent or null."""
    value = raw.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ModelError(f"expected true or false for {name}, found {value!r}; correct config.json")
    return value
