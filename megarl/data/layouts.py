"""From a row of a published schema to a problem: one function a layout, named in `config.data.LAYOUT_COLUMNS`."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from megarl.data.json_text import ExactFloat
from megarl.data.messages import Message, MessagesError, read_messages
from megarl.data.numbers import exact_text
from megarl.data.problem import Problem
from megarl.data.rows import Row, pick, remove

_LONGEST_SHOWN = 200


class RowError(Exception):
    """A row does not fit its layout; the caller adds where it is."""


class Fields:
    """A row's values by the layout's column names."""

    def __init__(self, row: Row, sources: Mapping[str, str]) -> None:
        self._row, self._sources = row, sources

    def __getitem__(self, column: str) -> Any:
        return pick(self._row, self._sources[column])

    def name(self, column: str) -> str:
        """What the file calls it, quoted."""
        return repr(self._sources[column])

    def others(self) -> dict[str, Any]:
        """What the layout does not use."""
        row = dict(self._row)
        for path in self._sources.values():
            remove(row, path)
        return row


def _convert_gsm8k(fields: Fields) -> Problem:
    """openai/gsm8k: the answer's text ends in "#### 72"; thousands commas are dropped."""
    text = _expect_text(fields, "answer")
    _, marker, tail = text.rpartition("####")
    answer = tail.strip().replace(",", "")
    if not marker or not answer:
        raise RowError(f'answer must end in "#### <number>", found {text[-60:]!r}')
    return Problem(
        messages=_messages(fields, "question"),
        answer=answer,
        solution=text,
        metadata=fields.others(),
    )


def _convert_dapo_math(fields: Fields) -> Problem:
    """BytedTsinghua-SIA/DAPO-Math-17k: messages and reward_model.ground_truth."""
    answer = _text_answer(fields, "reward_model.ground_truth")
    return Problem(messages=_messages(fields, "prompt"), answer=answer, solution=answer, metadata=fields.others())


def _convert_prompt_answer(fields: Fields) -> Problem:
    """prompt: text or messages; answer: text or a number. Other columns become the prompt's metadata."""
    answer = _text_answer(fields, "answer")
    return Problem(messages=_messages(fields, "prompt"), answer=answer, solution=answer, metadata=fields.others())


LAYOUTS: dict[str, Callable[[Fields], Problem]] = {
    "gsm8k": _convert_gsm8k,
    "dapo_math": _convert_dapo_math,
    "prompt_answer": _convert_prompt_answer,
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _expect_text(fields: Fields, column: str) -> str:
    value = fields[column]
    if not isinstance(value, str):
        raise RowError(f"column {fields.name(column)}: expected text, found {_shown(value)}")
    return value


def _text_answer(fields: Fields, column: str) -> str:
    value = fields[column]
    known = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
    if not known or (isinstance(value, float | Decimal) and not math.isfinite(value)):
        raise RowError(
            f"column {fields.name(column)}: expected the ground truth as text or a number, found {_shown(value)}"
        )
    if isinstance(value, ExactFloat):
        return value.text
    return value if isinstance(value, str) else exact_text(value)


def _messages(fields: Fields, column: str) -> tuple[Message, ...]:
    try:
        return read_messages(fields[column])
    except MessagesError as error:
        raise RowError(f"column {fields.name(column)}: {error}") from None
