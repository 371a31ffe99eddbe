"""Aggregation weights: hand-computed, and the same from the whole mini-batch as from its parts."""

import pytest

from megarl.config.objective import AggregationConfig
from megarl.objective.aggregation import AggregationTotals, aggregation_weights, sequence_weight

LENGTHS = [4, 0, 1, 5]


@pytest.mark.parametrize(
    ("mode", "norm_length", "expected"),
    [
        ("token-mean", None, [0.1, 0.0, 0.1, 0.1]),
        ("seq-mean-token-mean", None, [1 / 12, 0.0, 1 / 3, 1 / 15]),
        ("seq-mean-token-sum-norm", None, [1 / 60, 0.0, 1 / 60, 1 / 60]),
        ("seq-mean-token-sum-norm", 5, [1 / 15, 0.0, 1 / 15, 1 / 15]),
        ("seq-sum-token-mean", None, [1 / 4, 0.0, 1.0, 1 / 5]),
        ("token-sum", None, [1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_weights_by_hand(mode, norm_length, expected) -> None:
    config = AggregationConfig(mode=mode, norm_length=norm_length)
    assert aggregation_weights(config, LENGTHS, norm_length=20) == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_weights_of_a_mean_add_up_to_one(mode) -> None:
    weights = aggregation_weights(AggregationConfig(mode=mode), LENGTHS, norm_length=None)
    assert sum(w * n for w, n in zip(weights, LENGTHS, strict=True)) == pytest.approx(1.0)


def test_totals_of_parts_add_up() -> None:
    assert AggregationTotals.of(LENGTHS[:2]) + AggregationTotals.of(LENGTHS[2:]) == AggregationTotals.of(LENGTHS)
    assert AggregationTotals.of(LENGTHS) == AggregationTotals(num_tokens=10, num_sequences=3)


def test_mistakes_are_refused() -> None:
    totals = AggregationTotals.of([3])
    with pytest.raises(ValueError, match="whole mini-batch"):
        sequence_weight(AggregationConfig(), totals, 4, norm_length=None)
    with pytest.raises(ValueError, match=r"aggregation\.norm_length"):
        sequence_weight(AggregationConfig(mode="seq-mean-token-sum-norm"), totals, 3, norm_length=None)
