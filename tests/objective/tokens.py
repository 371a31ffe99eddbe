"""A small builder of TokenBatch for tests. T = response tokens of B responses."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from megarl.objective.tokens import TokenBatch
from megarl.records import Sample, columns_of

Column = Tensor | Sequence[float] | float | None

_DEFAULTS = {
    "logp": -1.0,
    "entropy": 1.0,
    "expected_q": 0.0,
    "old_logp": -1.0,
    "old_entropy": 1.0,
    "advantage": 1.0,
    "weight": 1.0,
}
_COLUMNS = tuple(column.name for column in columns_of(Sample))
_OPTIONAL = ("behavior_logp", "ref_logp", "expert_logp", "entropy_scale")


def make_tokens(
    lengths: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    sample_ids: Sequence[int] | None = None,
    correct: Sequence[bool] | bool | None = None,
    **columns: Column,
) -> TokenBatch:
    """A TokenBatch of responses with `lengths` tokens (default: one response, as long as the longest column).

    `columns` are fields without their _T: a number for all tokens, one number per token, or a tensor (taken as it is,
    graph and all, where its dtype fits). Missing ones: logp = old_logp = -1 (r = 1), entropies 1, advantage 1, weight
    1, expected_q 0; behavior_logp, ref_logp, expert_logp, entropy_scale and correct are None. `sample_ids`: one per
    response, default 0 .. B-1.
    """
    unknown = set(columns) - set(_DEFAULTS) - set(_OPTIONAL)
    if unknown:
        raise TypeError(f"no such columns: {sorted(unknown)}; there are {sorted([*_DEFAULTS, *_OPTIONAL, 'correct'])}")
    if lengths is None:
        sizes = [len(value) for value in (*columns.values(), correct) if isinstance(value, Sequence | Tensor)]
        lengths = [max(sizes, default=1)]
    num_tokens = sum(lengths)
    filled: dict[str, Any] = {**_DEFAULTS, **columns}
    values = {name: _column(name, value, num_tokens, dtype) for name, value in filled.items()}
    values["correct"] = _column("correct", correct, num_tokens, torch.bool)
    columns_T = {name: column_T for name in _COLUMNS if (column_T := values.pop(name, None)) is not None}
    ids = torch.tensor(sample_ids if sample_ids is not None else range(len(lengths)), dtype=torch.int64)
    repeats = torch.tensor(list(lengths), dtype=torch.int64)
    starts = torch.tensor([0, *accumulate(lengths)][:-1], dtype=torch.int64)
    return TokenBatch(
        sequence_T=torch.arange(len(lengths)).repeat_interleave(repeats),
        position_T=torch.arange(num_tokens) - starts.repeat_interleave(repeats),
        sample_id_T=ids.repeat_interleave(repeats),
        num_sequences=len(lengths),
        columns_T=columns_T,
        **{f"{name}_T": column_T for name, column_T in values.items()},
    )


def _column(name: str, value: Column, num_tokens: int, dtype: torch.dtype) -> Tensor | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        column_T = value.to(dtype)
    elif isinstance(value, Sequence):
        column_T = torch.tensor(list(value), dtype=dtype)
    else:
        column_T = torch.full((num_tokens,), value, dtype=dtype)
    if column_T.shape != (num_tokens,):
        raise ValueError(f"{name} has shape {tuple(column_T.shape)}, the lengths add up to {num_tokens} tokens")
    return column_T
