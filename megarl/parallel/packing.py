"""Which samples run together, and their tokens as one packed stream without padding between sequences.

Two pieces. `plan_micro_batches` (pure, deterministic: every rank computes the same plan from the same lengths) deals
samples to data-parallel ranks and micro-batches. `pack` makes one micro-batch, see `batches`.
"""

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.parallel.batches import Contexts, PackedSamples
from megarl.records import Column, Sample, columns_of


def stream_length(sample: Sample) -> int:
    """Tokens the sample takes in the stream: all but the last, and at least one. What to plan with."""
    return max(1, len(sample.prompt) + len(sample.response) - 1)


def plan_micro_batches(lengths: Sequence[int], *, data_ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Sample indices by [data-parallel rank][micro-batch].

    Every sample is in exactly one micro-batch; a micro-batch holds at most `max_tokens`, except that one longer sample
    makes a micro-batch of its own; none is empty; all ranks have the same number of micro-batches (the pipeline and
    expert collectives need that), the fewest that filling evenly or first-fit-decreasing finds; tokens are balanced
    over ranks. A rank's micro-batches go from most to fewest tokens, so that the n-th ones of different ranks are
    alike. Indices ascend within a micro-batch. The cost of a sample is its tokens; attention's quadratic part is not
    counted, and neither is the padding that `pack` adds to a stream.

    Raises:
        ValueError: fewer samples than ranks; a length below 1; or the samples, too long to share micro-batches, are
            not enough to give every rank equally many.
    """
    if data_ranks < 1 or max_tokens < 1:
        raise ValueError(f"data_ranks {data_ranks} and max_tokens {max_tokens} must be at least 1")
    if len(lengths) < data_ranks:
        raise ValueError(
            f"{len(lengths)} samples for {data_ranks} data-parallel ranks; every rank needs at least one: "
            "enlarge the mini-batch or use fewer data-parallel ranks"
        )
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sample {index} has length {length}; expected at least one token")
    # Longest first; equal lengths in the order given, which makes the plan deterministic.
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    first_fit = _first_fit_decreasing(lengths, order, max_tokens)
    fewest = _round_up(-(-sum(min(length, max_tokens) for length in lengths) // max_tokens), data_ranks)
    enough = _round_up(len(first_fit), data_ranks)
    counts = range(fewest, min(enough, len(lengths)) + 1, data_ranks)
    # By bisection: with more bins an even filling fits where it fits with fewer.
    at = bisect_left(counts, True, key=lambda count: _fill_evenly(lengths, order, count, max_tokens) is not None)
    if at < len(counts) and (bins := _fill_evenly(lengths, order, counts[at], max_tokens)) is not None:
        return _deal(bins, lengths, data_ranks)
    if enough > len(lengths):
        raise ValueError(
            f"{len(lengths)} samples need {len(first_fit)} micro-batches of {max_tokens} tokens, which cannot be dealt "
            f"equally to {data_ranks} data-parallel ranks without an empty one; use a multiple of {data_ranks} "
            "samples per mini-batch, or more tokens per micro-batch"
        )
    return _deal(_split_until(first_fit, lengths, enough), lengths, data_ranks)


def _first_fit_decreasing(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    """At most 11/9 of the fewest possible bins, plus one (Johnson 1973). A tree of free space finds the first fit."""
    num_leaves = 1 << (len(order) - 1).bit_length()
    # free[node] is the largest free space below node; leaf b is bin b, and an untouched bin is all free.
    free = [max_tokens] * (2 * num_leaves)
    bins: list[list[int]] = []
    for index in order:
        # A longer sample than the budget is taken as the budget: it then fits only a bin of its own and fills it.
        length = min(lengths[index], max_tokens)
        node = 1
        while node < num_leaves:
            node = 2 * node if free[2 * node] >= length else 2 * node + 1
        if node - num_leaves == len(bins):
            bins.append([])
        bins[node - num_leaves].append(index)
        free[node] -= length
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return bins


def _fill_evenly(
    lengths: Sequence[int], order: Sequence[int], num_bins: int, max_tokens: int
) -> list[list[int]] | None:
    """Longest first into the emptiest bin: bins of nearly equal size; None where the budget does not allow it."""
    heap = [(0, number) for number in range(num_bins)]
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for index in order:
        load, number = heap[0]
        # The emptiest bin is the best chance, so if the sample does not fit there it fits nowhere.
        if load and load + lengths[index] > max_tokens:
            return None
        bins[number].append(index)
        heapq.heapreplace(heap, (load + lengths[index], number))
    return bins


def _split_until(bins: list[list[int]], lengths: Sequence[int], num_bins: int) -> list[list[int]]:
    """Split the bins with most tokens, of those with two samples or more, until there are `num_bins`."""
    bins = [list(members) for members in bins]
    while len(bins) < num_bins:
        largest = max((members for members in bins if len(members) > 1), key=lambda m: _tokens(m, lengths))
        bins.remove(largest)
        halves: tuple[list[int], list[int]] = ([], [])
        for index in largest:
            min(halves, key=lambda half: _tokens(half, lengths)).append(index)
        bins.extend(halves)
    return bins


def _deal(bins: list[list[int]], lengths: Sequence[int], data_ranks: int) -> list[list[list[int]]]:
    """Equally many bins to every rank, largest first to the rank with the fewest tokens."""
    per_rank = len(bins) // data_ranks
    by_size = sorted((sorted(members) for members in bins), key=lambda m: (-_tokens(m, lengths), m))
    ranks: list[list[list[int]]] = [[] for _ in range(data_ranks)]
    heap = [(0, rank) for rank in range(data_ranks)]
    for members in by_size:
        load, rank = heapq.heappop(heap)
        ranks[rank].append(members)
        if len(ranks[rank]) < per_rank:
            heapq.heappush(heap, (load + _tokens(members, lengths), rank))
    return ranks


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _tokens(members: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in members)


def pack(
    samples: Sequence[Sample],
    weights: Sequence[float],
    *,
    pad_to_multiple: int = 1,
    sample_ids: Sequence[int] | None = None,
    contexts: Sequence[Contexts] | None = None,
) -> PackedSamples:
    """Pack samples of one class into one stream, in the order given.

    Args:
        samples: at least one, each with a prompt token; a response may be empty (it is then not scored).
        weights: aggregation weight of each sample's tokens (`objective.aggregation.sequence_weight`).
        pad_to_multiple: S becomes a multiple of this by one dummy sequence of at most `pad_to_multiple - 1` tokens.
            Sequence parallelism splits S over the tensor ranks.
        sample_ids: a name per sample; default: its position in `samples`.
        contexts: (context, outcome) of each sample's first response tokens; default: of none.

    Raises:
        ValueError: a sample without a prompt, or per-sample data of the wrong length.
    """
    if not samples:
        raise ValueError("no samples to pack; a micro-batch holds at least one")
    if len(weights) != len(samples):
        raise ValueError(f"{len(samples)} samples but {len(weights)} weights; give one weight per sample")
    if pad_to_multiple < 1:
        raise ValueError(f"pad_to_multiple is {pad_to_multiple}; expected at least 1")
    for number, sample in enumerate(samples):
        if not len(sample.prompt):
            raise ValueError(
                f"sample {number} has no prompt; its first response token has no token to be predicted from"
            )
    numbers = [(_NONE, _NONE)] * len(samples) if contexts is None else contexts
    return PackedSamples(
        tokens=np.concatenate([part for sample in samples for part in (sample.prompt, sample.response)]),
        prompt_lengths=np.array([len(sample.prompt) for sample in samples], dtype=np.int64),
        response_lengths=np.array([len(sample.response) for sample in samples], dtype=np.int64),
        num_padding=-sum(map(stream_length, samples)) % pad_to_multiple,
        sample_ids=tuple(range(len(samples)) if sample_ids is None else sample_ids),
        weight_B=np.array(weights, dtype=np.float32),
        contexts=_join(numbers),
        context_lengths=np.array([len(of_context) for of_context, _ in numbers], dtype=np.int64),
        per_sample=_pack_per_sample(samples),
        per_token=_pack_per_token(samples),
    )


_NONE = np.array([], dtype=np.int32)


def _join(contexts: Sequence[Contexts]) -> Contexts:
    context_R, outcome_R = (np.concatenate(parts) for parts in zip(*contexts, strict=True))
    return context_R, outcome_R


def _pack_per_sample(samples: Sequence[Sample]) -> Mapping[str, NDArray[Any]]:
    return {
        one.name: np.array([getattr(sample, one.name) for sample in samples], dtype=one.dtype)
        for one in columns_of(type(samples[0]))
        if one.per == "sample"
    }


def _pack_per_token(samples: Sequence[Sample]) -> Mapping[str, NDArray[Any]]:
    """One entry per response token; without the columns that no sample has."""
    packed = {}
    for one in columns_of(type(samples[0])):
        if one.per == "token" and (values := _pack_tokens(one, samples)) is not None:
            packed[one.name] = values
    return packed


def _pack_tokens(one: Column, samples: Sequence[Sample]) -> NDArray[Any] | None:
    given = [getattr(sample, one.name) for sample in samples]
    if all(values is None for values in given):
        return None
    for number, (values, sample) in enumerate(zip(given, samples, strict=True)):
        # A response without tokens has all of its entries, said or not.
        found = 0 if values is None else len(values)
        if found != len(sample.response):
            raise ValueError(
                f"{one.name} of sample {number} has {found} entries, its response {len(sample.response)} tokens; such "
                "columns belong to response tokens only, one each"
            )
    return np.concatenate([values for values in given if values is not None])
