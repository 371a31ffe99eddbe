"""What rules did to the traced tokens of a step, read from its parquet file column by column and a few rows at a time.

Every traced response of the file counts. A token is known by its text, or by its id as ⟨id⟩ where nobody decoded it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megarl.config.facts import rules_that
from megarl.telemetry.rollouts import iterate_batches

CLIPPING = rules_that("clips")
"""The rules of the column `rule` that are clipping, as actor/pg_clipfrac counts them; the first marks the token."""

_COLUMNS = (
    *("step", "sample_id", "prompt_index", "advantage"),
    *("response_tokens", "token_text", "entropy", "ratio", "rule"),
)


def is_clipped(rule: str) -> bool:
    """Whether a rule of "clip_high+tis" is clipping."""
    return any(name in CLIPPING for name in rule.split("+"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedResponse:
    """How often rules acted in one response."""

    sample_id: int
    prompt_index: int
    advantage: float
    num_tokens: int
    num_clipped: int
    num_ruled: int
    """Tokens that any rule acted on, clipping included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledToken:
    """A token and the rules that acted on it together, over all traced responses."""

    text: str
    rule: str
    count: int
    occurrences: int
    """Of the text, with and without a rule."""
    mean_entropy: float
    mean_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSurvey:
    """The traced responses of a step, in the file's order, and the tokens that rules acted on, in no order."""

    step: int
    responses: tuple[TracedResponse, ...]
    tokens: tuple[RuledToken, ...]


def survey_traces(path: Path) -> TraceSurvey | None:
    """Count in the file of one step; None where no response of it was traced.

    Raises:
        ValueError: the file has other columns than `rollouts.SCHEMA`.
    """
    step = 0
    responses: list[TracedResponse] = []
    occurrences: Counter[str] = Counter()
    totals: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3))
    for batch in iterate_batches(path, _COLUMNS):
        traced = batch.filter(pc.is_valid(batch["rule"]))
        if traced.num_rows:
            step = traced["step"][0].as_py()
            responses += _responses(traced)
            for text, rule, count, entropy, ratio in _sums_by_token(traced):
                occurrences[text] += count
                totals[text, rule] += (count, entropy, ratio)
    tokens = [
        RuledToken(
            text=text,
            rule=rule,
            count=int(count),
            occurrences=occurrences[text],
            mean_entropy=float(entropy / count),
            mean_ratio=float(ratio / count),
        )
        for (text, rule), (count, entropy, ratio) in totals.items()
        if rule
    ]
    return TraceSurvey(step=step, responses=tuple(responses), tokens=tuple(tokens)) if responses else None


def _responses(traced: pa.RecordBatch) -> Iterator[TracedResponse]:
    rules = traced["rule"].flatten()
    texts = rules.dictionary.to_pylist()
    codes = rules.indices.to_numpy(zero_copy_only=False)
    row = pc.list_parent_indices(traced["rule"]).to_numpy(zero_copy_only=False)
    clipped, ruled = (
        np.bincount(row, weights=np.array([*map(acts, texts)], dtype=float)[codes], minlength=traced.num_rows)
        for acts in (is_clipped, bool)
    )
    lengths = pc.list_value_length(traced["rule"]).to_pylist()
    keys = traced.select(["sample_id", "prompt_index", "advantage"]).to_pylist()
    for index, key in enumerate(keys):
        yield TracedResponse(
            **key, num_tokens=lengths[index], num_clipped=int(clipped[index]), num_ruled=int(ruled[index])
        )


def _sums_by_token(traced: pa.RecordBatch) -> Iterator[tuple[str, str, int, float, float]]:
    """(text, rule, how often, sum of H, sum of r) of every pair of a text and a rule, "" included."""
    has_text = pc.is_valid(traced["token_text"])
    for part, is_decoded in ((traced.filter(has_text), True), (traced.filter(pc.invert(has_text)), False)):
        if is_decoded:
            texts = part["token_text"].flatten().dictionary_decode()
        else:
            ids = part["response_tokens"].flatten().cast(pa.string())
            texts = pc.binary_join_element_wise("⟨", ids, "⟩", "")
        columns = {
            "text": texts,
            "rule": part["rule"].flatten().dictionary_decode(),
            "entropy": part["entropy"].flatten().cast(pa.float64()),
            "ratio": part["ratio"].flatten().cast(pa.float64()),
        }
        sums = [([], "count_all"), ("entropy", "sum"), ("ratio", "sum")]
        grouped = pa.table(columns).group_by(["text", "rule"]).aggregate(sums)
        names = ("text", "rule", "count_all", "entropy_sum", "ratio_sum")
        yield from zip(*(grouped[name].to_pylist() for name in names), strict=True)
