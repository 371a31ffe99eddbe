"""Which samples run together, and their tokens as one packed stream without padding between sequences.

Two pieces. `plan_micro_batches` (pure, deterministic: every rank computes the same plan from the same lengths) deals
samples to data-parallel ranks and micro-batches. `pack` makes the tensors of one micro-batch.

S = tokens of the packed stream, R = response tokens (the ones that are scored), B = samples.

A sample's stream is its tokens without the last one: that one is only ever predicted, and its own logits would predict
nothing. So the logits at stream position j of a sample predict its token j + 1, `response_index_R` starts at the last
prompt token, and the last position of each sequence predicts the last response token.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor


class PackableSample(Protocol):
    """What `pack` reads of a sample; `megarl.records.Sample` is one."""

    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def response(self) -> Sequence[int]: ...
    @property
    def behavior_logp(self) -> Sequence[float]: ...
    @property
    def advantage(self) -> float: ...
    @property
    def correct(self) -> bool: ...
    @property
    def expert_logp(self) -> Sequence[float]: ...
    @property
    def entropy_scale(self) -> float: ...


def stream_length(sample: PackableSample) -> int:
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
    for num_bins in range(fewest, min(enough, len(lengths)) + 1, data_ranks):
        bins = _fill_evenly(lengths, order, num_bins, max_tokens)
        if bins is not None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMicroBatch:
    """The tensors of one micro-batch in THD packing. Only response tokens have entries in the _R tensors."""

    tokens_S: Tensor
    """int64."""
    position_S: Tensor
    """int64, from 0 in each sequence."""
    cu_seqlens: Tensor
    """int32 [sequences + 1]: where each sequence starts in the stream; the padding is the last sequence."""
    max_seqlen: int
    response_index_R: Tensor
    """int64: the stream position whose logits predict the response token, i.e. that of the token before it."""
    target_R: Tensor
    """int64: the response tokens."""
    advantage_R: Tensor
    """float32."""
    weight_R: Tensor
    """float32: aggregation weight of the token."""
    response_offsets: tuple[int, ...]
    """[B + 1]: sample b's response tokens are entries offsets[b] to offsets[b + 1] of every _R tensor."""
    num_padding: int
    """Tokens of the dummy sequence at the end of the stream; never scored."""
    sample_ids: tuple[int, ...]
    """[B]: the caller's name for each sample, to find per-token results again."""
    sequence_R: Tensor
    """int64: which of the B samples."""
    position_R: Tensor
    """int64: position in the response, from 0."""
    sample_id_R: Tensor
    """int64: `sample_ids` per token."""
    correct_R: Tensor
    """bool."""
    entropy_scale_R: Tensor
    """float32: factor of the entropy bonus."""
    context_R: Tensor
    """int64: tokens of the mini-batch that follow the same prompt and response so far have equal numbers, from 0; -1:
    no other token does."""
    outcome_R: Tensor
    """int64: the same of tokens that are equal themselves, too."""
    behavior_logp_R: Tensor | None = None
    """float32; None where the samples carry none (supervised data)."""
    expert_logp_R: Tensor | None = None
    """float32, NaN past the expert answer's end; None where the samples carry none."""

    @property
    def num_samples(self) -> int:
        return len(self.response_offsets) - 1

    def to(self, device: torch.device | str) -> "PackedMicroBatch":
        """The same micro-batch with its tensors on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        return PackedMicroBatch(**moved)


def pack(
    samples: Sequence[PackableSample],
    weights: Sequence[float],
    *,
    pad_to_multiple: int = 1,
    pad_token: int = 0,
    sample_ids: Sequence[int] | None = None,
    contexts: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> PackedMicroBatch:
    """Pack samples into one stream, in the order given, on the CPU.

    Args:
        samples: at least one, each with a prompt token; a response may be empty (it is then not scored).
        weights: aggregation weight of each sample's tokens (`objective.aggregation.sequence_weight`).
        pad_to_multiple: S becomes a multiple of this by one dummy sequence of at most `pad_to_multiple - 1` tokens
            `pad_token`. Sequence parallelism splits S over the tensor ranks.
        sample_ids: a name per sample; default: its position in `samples`.
        contexts: (context, outcome) of each sample's response tokens; default: all -1.

    Raises:
        ValueError: a sample without a prompt, or per-sample data of the wrong length.
    """
    if not samples:
        raise ValueError("no samples to pack; a micro-batch holds at least one")
    if len(weights) != len(samples):
        raise ValueError(f"{len(samples)} samples but {len(weights)} weights; give one weight per sample")
    if pad_to_multiple < 1:
        raise ValueError(f"pad_to_multiple is {pad_to_multiple}; expected at least 1")
    tokens: list[int] = []
    starts = [0]
    response_index: list[int] = []
    for number, sample in enumerate(samples):
        if not sample.prompt:
            raise ValueError(
                f"sample {number} has no prompt; its first response token has no token to be predicted from"
            )
        first = starts[-1] + len(sample.prompt) - 1
        response_index.extend(range(first, first + len(sample.response)))
        tokens.extend((*sample.prompt, *sample.response)[: stream_length(sample)])
        starts.append(len(tokens))
    num_padding = -len(tokens) % pad_to_multiple
    if num_padding:
        tokens.extend([pad_token] * num_padding)
        starts.append(len(tokens))
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    lengths = cu_seqlens.diff().long()
    response_lengths = torch.tensor([len(sample.response) for sample in samples])
    offsets = (0, *response_lengths.cumsum(0).tolist())
    sequence_R = torch.arange(len(samples)).repeat_interleave(response_lengths)
    ids = tuple(range(len(samples)) if sample_ids is None else sample_ids)
    alone_R = torch.full((offsets[-1],), -1, dtype=torch.int64)
    context_R, outcome_R = (alone_R, alone_R) if contexts is None else map(torch.cat, zip(*contexts, strict=True))
    return PackedMicroBatch(
        tokens_S=torch.tensor(tokens, dtype=torch.int64),
        position_S=torch.arange(len(tokens)) - cu_seqlens[:-1].long().repeat_interleave(lengths),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        response_index_R=torch.tensor(response_index, dtype=torch.int64),
        target_R=torch.tensor([token for sample in samples for token in sample.response], dtype=torch.int64),
        advantage_R=_per_token([sample.advantage for sample in samples], response_lengths),
        weight_R=_per_token(weights, response_lengths),
        response_offsets=offsets,
        num_padding=num_padding,
        sample_ids=ids,
        sequence_R=sequence_R,
        position_R=torch.arange(offsets[-1]) - torch.tensor(offsets)[sequence_R],
        sample_id_R=torch.tensor(ids, dtype=torch.int64)[sequence_R],
        correct_R=_per_token([float(sample.correct) for sample in samples], response_lengths).bool(),
        entropy_scale_R=_per_token([sample.entropy_scale for sample in samples], response_lengths),
        context_R=context_R,
        outcome_R=outcome_R,
        behavior_logp_R=_pack_logps("behavior_logp", [sample.behavior_logp for sample in samples], samples),
        expert_logp_R=_pack_logps("expert_logp", [sample.expert_logp for sample in samples], samples),
    )


def split_by_sample(values_R: Tensor, batch: PackedMicroBatch) -> list[Tensor]:
    """Per-response-token values [R, ...] as one tensor per sample, in the order packed; views of `values_R`."""
    if values_R.shape[0] != batch.response_offsets[-1]:
        raise ValueError(
            f"{values_R.shape[0]} values for a micro-batch of {batch.response_offsets[-1]} response tokens"
        )
    return [values_R[start:stop] for start, stop in pairwise(batch.response_offsets)]


def _per_token(values: Sequence[float], response_lengths: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(response_lengths)


def _pack_logps(name: str, logps: Sequence[Sequence[float]], samples: Sequence[PackableSample]) -> Tensor | None:
    """One entry per response token, or None where no sample has any. Without response tokens, no entries."""
    if not any(logps) and any(sample.response for sample in samples):
        return None
    for number, (own, sample) in enumerate(zip(logps, samples, strict=True)):
        if len(own) != len(sample.response):
            raise ValueError(
                f"{name} of sample {number} has {len(own)} entries, its response {len(sample.response)} tokens; "
                "log-probs belong to response tokens only, one each"
            )
    return torch.tensor([logp for own in logps for logp in own], dtype=torch.float32)
