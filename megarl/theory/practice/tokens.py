"""A step's rollouts as sums: the entropy before the step on every mini-batch's tokens, and what the clip's sets hold.

One file is read a few rows at a time; only the entropies of its traced tokens are held together, for their quintiles.
Edges of a class belong to the class above them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megarl.config.facts import rules_that
from megarl.report.figure import Values
from megarl.telemetry.rollouts import iterate_batches
from megarl.theory.practice.updates import SIDES

SURPRISAL_EDGES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Of -log p under the update's weights, nats."""
CLASSES = {
    "all": ("all",),
    "surprisal": ("< 0.1", "0.1 to 0.5", "0.5 to 1", "1 to 2", "2 to 4", ">= 4"),
    "quintile": ("1, most certain", "2", "3", "4", "5, least certain"),
    "position": ("1", "2", *(f"{2**k + 1} to {2 ** (k + 1)}" for k in range(1, 12)), f"from {2**12 + 1}"),
}
"""How tokens are told apart: kind -> its classes. Quintiles are of the entropies of the step's traced tokens; positions
are those in the response, from 1."""
SUMS = (
    *("tokens", "inside", "negative", "mass", "gap", "gap_negative", "dropped", "likely"),
    *("change_negative", "change_other"),
)
"""What is summed over the tokens of a class: all; those in the set; of them those with N - Q < 0; r; r (N - Q), and
that of the negative ones; those that the rule acted on; those with -log p < H; the change of their own entropy since
the step began, of the negative and of the others."""
_OF_RESPONSE = ("sample_id", "prompt_index")
_OF_TOKEN = (
    *("old_entropy", "old_logp", "logp", "entropy", "expected_q", "ratio", "low", "high", "coefficient", "rule"),
)
_FIRST = ("old_entropy", "logp", "entropy", "expected_q", "coefficient")
_CLIP_RULES = {side: f"clip_{side}" for side in SIDES}
assert set(_CLIP_RULES.values()) <= set(rules_that("clips"))


@dataclass(kw_only=True)
class StepTokens:
    """Of one file."""

    old_entropy: dict[int, float] = field(default_factory=dict)
    """By mini-batch, summed over all tokens of all its responses."""
    count: dict[int, int] = field(default_factory=dict)
    sums: dict[tuple[str, str, int], Values] = field(default_factory=dict)
    """(side, kind, class) -> SUMS over the traced tokens."""
    num_traced: int = 0
    first_entropy: dict[int, float] = field(default_factory=dict)
    """By prompt: before the step, where the response's first token is chosen; the same state in all its responses."""
    first_budgets: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """By prompt, of each of its traced responses: (mini-batch, c (N - Q) of the first token)."""
    num_responses: dict[int, int] = field(default_factory=dict)
    """By prompt, those with tokens."""

    def mean_old_entropy(self, updates: int) -> Values:
        """[K], NaN where a mini-batch has no token."""
        return np.array([self.old_entropy[k] / self.count[k] if self.count.get(k) else np.nan for k in range(updates)])


def read_step_tokens(path: Path, *, mini_batch_responses: int) -> StepTokens:
    """ValueError, OSError where the file is none of `telemetry.rollouts`."""
    found = StepTokens()
    quintiles = _quintile_edges(path)
    for batch in iterate_batches(path, (*_OF_RESPONSE, *_OF_TOKEN)):
        mini_batches = batch["sample_id"].to_numpy() // mini_batch_responses
        lengths = batch["old_entropy"].value_lengths().to_numpy()
        _add_first_tokens(found, batch, mini_batches)
        of_token = np.repeat(mini_batches, lengths)
        totals = np.bincount(of_token, weights=batch["old_entropy"].flatten().to_numpy())
        counts = np.bincount(of_token)
        for mini_batch in np.flatnonzero(counts).tolist():
            found.old_entropy[mini_batch] = found.old_entropy.get(mini_batch, 0.0) + float(totals[mini_batch])
            found.count[mini_batch] = found.count.get(mini_batch, 0) + int(counts[mini_batch])
        traced = batch.filter(pc.is_valid(batch["ratio"]))
        if traced.num_rows and quintiles is not None:
            found.num_traced += _add_traced(found.sums, traced, quintiles)
    return found


def _add_first_tokens(found: StepTokens, batch: pa.RecordBatch, mini_batches: Values) -> None:
    """Of every response that has tokens."""
    has_tokens = pc.greater(batch["old_entropy"].value_lengths(), 0)
    kept = batch.select([*_OF_RESPONSE, *_FIRST]).filter(has_tokens)
    column = {name: pc.list_element(kept[name], 0).to_numpy(zero_copy_only=False) for name in _FIRST}
    gap = column["expected_q"] - np.exp(column["logp"]) * (column["logp"] + column["entropy"])
    budget = column["coefficient"] * gap
    own = mini_batches[has_tokens.to_numpy(zero_copy_only=False)]
    rows = zip(
        kept["prompt_index"].to_pylist(), own.tolist(), column["old_entropy"].tolist(), budget.tolist(), strict=True
    )
    for prompt, mini_batch, entropy, value in rows:
        found.first_entropy[prompt] = entropy
        found.num_responses[prompt] = found.num_responses.get(prompt, 0) + 1
        if np.isfinite(value):
            found.first_budgets.setdefault(prompt, []).append((mini_batch, value))


def _quintile_edges(path: Path) -> Values | None:
    parts = [batch["entropy"].flatten().to_numpy() for batch in iterate_batches(path, ["entropy"])]
    entropies = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return np.quantile(entropies, [0.2, 0.4, 0.6, 0.8]).astype(np.float64) if len(entropies) else None


def _add_traced(sums: dict[tuple[str, str, int], Values], traced: pa.RecordBatch, quintiles: Values) -> int:
    column = {name: traced[name].flatten() for name in _OF_TOKEN}
    rules = column.pop("rule")
    number = {name: values.to_numpy().astype(np.float64) for name, values in column.items()}
    lengths = traced["ratio"].value_lengths().to_numpy()
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    position = np.arange(len(starts)) - starts
    classes = {
        "all": np.zeros(len(starts), np.int64),
        "surprisal": np.digitize(-number["logp"], SURPRISAL_EDGES),
        "quintile": np.digitize(number["entropy"], quintiles),
        "position": np.minimum(np.ceil(np.log2(position + 1)).astype(np.int64), len(CLASSES["position"]) - 1),
    }
    names = [name.split("+") for name in rules.dictionary.to_pylist()]
    codes = rules.indices.to_numpy()
    for side, values_NT in _sides(number, names, codes):
        for kind, class_T in classes.items():
            size = len(CLASSES[kind])
            per_class = np.array([np.bincount(class_T, weights=row, minlength=size) for row in values_NT])
            for index in np.unique(class_T).tolist():
                key = (side, kind, index)
                sums[key] = sums.get(key, np.zeros(len(SUMS))) + per_class[:, index]
    return len(starts)


def _sides(number: dict[str, Values], names: list[list[str]], codes: Values) -> Iterator[tuple[str, Values]]:
    """(side, [SUMS, tokens]). p (log p + H) is that of the sampled token; the sets are Theorem 1's, whatever A is."""
    logp, entropy = number["logp"], number["entropy"]
    gap = number["expected_q"] - np.exp(logp) * (logp + entropy)
    own_ratio = np.exp(np.clip(logp - number["old_logp"], -20, 20))
    change = entropy - number["old_entropy"]
    for side in SIDES:
        beyond = number["ratio"] < number["low"] if side == "low" else number["ratio"] > number["high"]
        inside = beyond.astype(np.float64)
        negative = inside * (gap < 0)
        dropped = np.array([_CLIP_RULES[side] in rules for rules in names], dtype=np.float64)[codes]
        yield (
            side,
            np.array(
                [
                    *(np.ones_like(inside), inside, negative, inside * own_ratio),
                    *(inside * own_ratio * gap, negative * own_ratio * gap, dropped, inside * (-logp < entropy)),
                    *(negative * change, (inside - negative) * change),
                ]
            ),
        )
