"""JSON as data sets have it: numbers keep their digits, an object's keys are its own, text is UTF-8."""

import json
from decimal import Decimal
from typing import Any

_LONGEST_EXPONENT = 400


class ExactFloat(float):
    """A number with the digits it was written with; a plain float to everybody else, and when pickled."""

    __slots__ = ("text",)
    text: str
    """Its digits, without an exponent: 1e-05 is 0.00001."""

    def __new__(cls, literal: str) -> "ExactFloat":
        number = super().__new__(cls, literal)
        number.text = literal
        if "e" in literal or "E" in literal:
            exact = Decimal(literal)
            if abs(exact.adjusted()) <= _LONGEST_EXPONENT:
                number.text = format(exact, "f")
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class JsonTextError(ValueError):
    """Not what a data set's JSON may be; the text says what was expected and found."""


def parse_object(text: bytes) -> dict[str, Any]:
    """One JSON object. JsonTextError when it is none."""
    value = parse(decode(text))
    if not isinstance(value, dict):
        raise JsonTextError(f"expected a JSON object, found {type(value).__name__}")
    return value


def decode(text: bytes) -> str:
    """UTF-8 as text. JsonTextError names the first other byte."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise JsonTextError(
            f"expected UTF-8, found byte 0x{text[error.start]:02x} after {before!r}; convert the file, e.g. with "
            "iconv -f LATIN1 -t UTF-8"
        ) from None


def parse(text: str) -> Any:
    """Any JSON value. JsonTextError when it is none, or an object has a key twice."""
    try:
        return _DECODER.decode(text)
    except JsonTextError:
        raise
    except json.JSONDecodeError as error:
        raise JsonTextError(f"not valid JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested as deep
        raise JsonTextError(str(error)) from None


def _own_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonTextError(f"key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_own_keys, parse_float=ExactFloat)
