"""How token losses become one number: a weight per token, known before the first micro-batch runs.

loss = sum over all response tokens of weight * token loss, so micro-batches, pipeline stages and data-parallel ranks
only add. The normaliser counts the whole mini-batch over all data-parallel ranks; every token of a response has the
same weight. Names are verl's (`loss_agg_mode`), and two sums in their manner.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from megarl.config.objective import AggregationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationTotals:
    """What the normaliser counts, over the whole mini-batch on all data-parallel ranks."""

    num_tokens: int
    """Response tokens."""
    num_sequences: int
    """Responses with at least one token: an empty one has no loss to average (verl's `seq_mask`)."""

    @classmethod
    def of(cls, response_lengths: Iterable[int]) -> "AggregationTotals":
        """Totals of these responses; totals of disjoint parts of a mini-batch add up with `+`."""
        lengths = list(response_lengths)
        return cls(num_tokens=sum(lengths), num_sequences=sum(length > 0 for length in lengths))

    def __add__(self, other: "AggregationTotals") -> "AggregationTotals":
        return AggregationTotals(
            num_tokens=self.num_tokens + other.num_tokens, num_sequences=self.num_sequences + other.num_sequences
        )


def sequence_weight(
    config: AggregationConfig, totals: AggregationTotals, response_length: int, *, norm_length: int | None
) -> float:
    """The weight of each token of a response of `response_length` tokens; 0 for an empty response.

    token-mean: 1 / tokens of the mini-batch (DAPO). seq-mean-token-mean: 1 / (responses * response_length) (GRPO).
    seq-mean-token-sum-norm: 1 / (responses * norm_length), a constant divisor (Dr. GRPO). seq-sum-token-mean:
    1 / response_length (DCPO's OTM). token-sum: 1. The last two grow with the mini-batch.

    `norm_length` is the divisor where the config names none (rollout.max_response_tokens); only the third mode
    reads it.

    Raises:
        ValueError: the totals do not contain this response, or the third mode has no norm_length.
    """
    if response_length == 0:
        return 0.0
    if response_length > totals.num_tokens or totals.num_sequences < 1:
        raise ValueError(
            f"a response of {response_length} tokens is not in a mini-batch of {totals.num_tokens} tokens and "
            f"{totals.num_sequences} responses; take the totals over the whole mini-batch, on all data-parallel ranks"
        )
    match config.mode:
        case "token-mean":
            return 1.0 / totals.num_tokens
        case "seq-mean-token-mean":
            return 1.0 / (totals.num_sequences * response_length)
        case "seq-mean-token-sum-norm":
            divisor = norm_length if config.norm_length is None else config.norm_length
            if divisor is None or divisor < 1:
                raise ValueError(
                    f"seq-mean-token-sum-norm divides by a length of at least 1, found {divisor}; "
                    "set objective.aggregation.norm_length or rollout.max_response_tokens"
                )
            return 1.0 / (totals.num_sequences * divisor)
        case "seq-sum-token-mean":
            return 1.0 / response_length
        case "token-sum":
            return 1.0
    assert_never(config.mode)


def aggregation_weights(
    config: AggregationConfig, response_lengths: Iterable[int], *, norm_length: int | None
) -> list[float]:
    """`sequence_weight` for every response of one whole mini-batch, in the order given."""
    lengths = list(response_lengths)
    totals = AggregationTotals.of(lengths)
    return [sequence_weight(config, totals, length, norm_length=norm_length) for length in lengths]
