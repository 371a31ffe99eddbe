"""What the reader in a page is given: JSON without markup whose long parts are compressed numbers in base64.

    {"runs":      [{"name", "updates"}],                 updates: of a step; null where not known
     "prompts":   [text],
     "rules":     ["", "clip_high+tis", ...]            names of a token's rules together
     "tokens":    [[id, text, kind], ...]               kind: 0 text, 1 special, 2 text that nobody decoded
     "layouts":   [["behavior_logp", ...], ...]         columns that a response may have
     "scales":    {"entropy": 1.5, ...}                 what the strongest tint stands for
     "responses": [{"run", "step", "prompt", ..., "count", "shown", "layout", "data"}]}

"data" is zlib's of: `shown` little-endian uint32 into "tokens", as many uint16 into "rules", then as many float32 of
each column of the layout, bit for bit those of the file. Values are stored byte by byte, all first bytes and then all
second ones: that compresses better.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.records import Floats, columns_of
from megarl.rules import rule_names
from megarl.telemetry.rollouts import RolloutRow

MAX_TOKENS_OF_A_RESPONSE = 32_768
"""Of a longer one the first."""
_TRACED = {"advantage": "token_advantage"}
"""Fields of a trace whose column is called otherwise."""
_PART_OF_A_CHARACTER = "\ufffd"


def columns_of_row(row: RolloutRow) -> dict[str, Floats]:
    """The row's numbers per token by the name of their column; those that the file has not are left out."""
    found = {one.name: getattr(row, one.name) for one in columns_of(RolloutRow)}
    if row.trace is not None:
        for one in columns_of(type(row.trace)):
            if one.name != "rule":
                found[_TRACED.get(one.name, one.name)] = getattr(row.trace, one.name)
    return {name: values for name, values in found.items() if values is not None}


class _Index:
    """Values by number, in the order in which they were first asked for."""

    def __init__(self, first: Iterable[Any] = ()) -> None:
        self.numbers: dict[Any, int] = {value: number for number, value in enumerate(first)}

    def of(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)

    def cut(self, length: int) -> None:
        """Forget all but the first so many."""
        while len(self.numbers) > length:
            self.numbers.popitem()


@dataclass(slots=True)
class PayloadBuilder:
    """Collects responses until they would be larger than `max_bytes` as JSON."""

    max_bytes: int
    _responses: list[dict[str, Any]] = field(default_factory=list)
    _prompts: _Index = field(default_factory=_Index)
    _tokens: _Index = field(default_factory=_Index)
    _rules: _Index = field(default_factory=lambda: _Index([""]))
    _layouts: _Index = field(default_factory=_Index)
    _special: dict[int, bool] = field(default_factory=dict)
    num_bytes: int = 0
    """What the responses and their texts have as JSON."""

    def add(self, row: RolloutRow, *, run: int, update: int | None) -> bool:
        """Take the response in; False, and nothing is changed, where it does not fit."""
        shown = min(len(row.response_tokens), MAX_TOKENS_OF_A_RESPONSE)
        tables = (self._prompts, self._tokens, self._rules, self._layouts)
        before = [len(table) for table in tables]
        facts = {
            "run": run,
            "prompt": self._prompts.of(row.prompt_text),
            "update": update,
            "count": len(row.response_tokens),
            "shown": shown,
            "ruled": 0 if row.trace is None else int(np.count_nonzero(row.trace.rule)),
            "layout": self._layouts.of(tuple(columns_of_row(row))),
            "data": self._encode(row, shown),
        }
        response = _facts(row) | facts
        new = [list(table.numbers)[start:] for table, start in zip(tables, before, strict=True)]
        size = len(page_json([response, *new]).encode())
        if self.num_bytes + size > self.max_bytes:
            for table, start in zip(tables, before, strict=True):
                table.cut(start)
            return False
        self.num_bytes += size
        self._responses.append(response)
        return True

    def _encode(self, row: RolloutRow, shown: int) -> str:
        codes = [self._tokens.of(token) for token in self._described(row, shown)]
        flags = np.zeros(shown, np.int32) if row.trace is None else row.trace.rule[:shown]
        rules = [self._rules.of(rule_names(int(flag))) for flag in flags]
        parts = [
            _planes(np.array(codes, "<u4")),
            _planes(np.array(rules, "<u2")),
            *(_planes(values[:shown].astype("<f4")) for values in columns_of_row(row).values()),
        ]
        return base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()

    def _described(self, row: RolloutRow, shown: int) -> Iterable[tuple[int, str, int]]:
        """(id, text, kind) of every token that is shown."""
        ids = row.response_tokens[:shown].tolist()
        if row.token_text is None:
            return [(token, "", 2) for token in ids]
        return [
            (token, text, int(self._is_special(token, text, row)))
            for token, text in zip(ids, row.token_text, strict=False)
        ]

    def _is_special(self, token: int, text: str, row: RolloutRow) -> bool:
        """A response's text leaves special tokens out, which a token's own text does not."""
        if token not in self._special:
            self._special[token] = bool(text) and _PART_OF_A_CHARACTER not in text and text not in row.response_text
        return self._special[token]

    def build(self, runs: Sequence[dict[str, Any]], scales: dict[str, float]) -> dict[str, Any]:
        """The payload. `runs` by their number in `add`."""
        return {
            "runs": list(runs),
            "prompts": list(self._prompts.numbers),
            "rules": list(self._rules.numbers),
            "tokens": [list(token) for token in self._tokens.numbers],
            "layouts": [list(layout) for layout in self._layouts.numbers],
            "scales": scales,
            "responses": sorted(self._responses, key=lambda one: (one["run"], one["step"], one["sample_id"])),
        }


def page_json(value: Any) -> str:
    """JSON that a page may hold in a script element: no text in it can end that, or begin markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(row: RolloutRow) -> dict[str, Any]:
    """What the heading says; numbers that JSON has not as None."""
    names = ("step", "prompt_index", "sample_index", "sample_id", "policy_version", "stop_reason", "failure")
    numbers = ("reward", "verifier_reward", "overlong", "bonus", "advantage")
    values = {name: float(getattr(row, name)) for name in numbers}
    return {name: getattr(row, name) for name in names} | {
        name: value if math.isfinite(value) else None for name, value in values.items()
    }


def _planes(values: NDArray[Any]) -> bytes:
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()
