"""What a data-parallel rank trains on in a step: packed micro-batches, as they travel and as a model runs on them.

S = tokens of the packed stream, R = response tokens (the ones that are scored), B = samples.

A sample's stream is its tokens without the last one: that one is only ever predicted, and its own logits would predict
nothing. So the logits at stream position j of a sample predict its token j + 1, `response_index_R` starts at the last
prompt token, and the last position of each sequence predicts the last response token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megarl.records import TokenIds

Contexts = tuple[NDArray[np.int32], NDArray[np.int32]]
"""(context, outcome) of a response's first tokens, equally many of both, see `PackedMicroBatch`; -1 of those beyond."""

_PAD_TOKEN = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSamples:
    """One micro-batch as it crosses process borders: numpy arrays, and nothing per token that can be said per sample;
    8 bytes per token where samples were sampled. `to` makes of it what a model runs on."""

    tokens: TokenIds
    """Prompt and response of every sample, one after the other."""
    prompt_lengths: NDArray[np.int64]
    """[B]."""
    response_lengths: NDArray[np.int64]
    """[B]."""
    num_padding: int
    """Tokens of the dummy sequence at the end of the stream; never scored."""
    sample_ids: tuple[int, ...]
    """[B]: the caller's name for each sample, to find per-token results again."""
    weight_B: NDArray[np.float32]
    """Aggregation weight of each token of the sample."""
    contexts: Contexts
    """Of the samples' first tokens, one sample after the other."""
    context_lengths: NDArray[np.int64]
    """[B]: how many of each sample's."""
    per_sample: Mapping[str, NDArray[Any]]
    """The columns of the samples, by name, [B] each."""
    per_token: Mapping[str, NDArray[Any]]
    """The columns of their response tokens, by name, [R] each; one that no sample has is not there."""

    @property
    def response_offsets(self) -> tuple[int, ...]:
        """[B + 1]: sample b's response tokens are entries offsets[b] to offsets[b + 1] of everything per token."""
        return (0, *np.cumsum(self.response_lengths).tolist())

    @property
    def num_stream_tokens(self) -> int:
        """S."""
        return int(self._stream_lengths().sum())

    def to(self, device: torch.device | str) -> "PackedMicroBatch":
        """The micro-batch as tensors on `device`."""
        lengths = self._stream_lengths()
        ends = lengths.cumsum()
        sequence_R = np.arange(len(self.sample_ids)).repeat(self.response_lengths)
        position_R = np.arange(len(sequence_R)) - np.array(self.response_offsets)[sequence_R]
        first_index_B = (ends - lengths)[: len(self.sample_ids)] + self.prompt_lengths - 1
        context_R, outcome_R = map(self._spread, self.contexts)
        of_samples = {name: values_B[sequence_R] for name, values_B in self.per_sample.items()}
        made: dict[str, NDArray[Any]] = {
            "tokens_S": self._stream(),
            "position_S": np.arange(ends[-1]) - (ends - lengths).repeat(lengths),
            "cu_seqlens": np.array([0, *ends], dtype=np.int32),
            "response_index_R": first_index_B[sequence_R] + position_R,
            "target_R": self._targets(),
            "weight_R": self.weight_B[sequence_R],
            "sequence_R": sequence_R,
            "position_R": position_R,
            "sample_id_R": np.array(self.sample_ids, dtype=np.int64)[sequence_R],
            "context_R": context_R,
            "outcome_R": outcome_R,
        }
        return PackedMicroBatch(
            **{name: _tensor(array, device) for name, array in made.items()},
            columns_R={name: _tensor(array, device) for name, array in {**of_samples, **self.per_token}.items()},
            lengths=tuple(lengths.tolist()),
            num_samples=len(self.sample_ids),
        )

    def _spread(self, numbers: NDArray[np.int32]) -> NDArray[np.int64]:
        """Numbers of the responses' first tokens as [R], -1 beyond."""
        spread_R = np.full(self.response_offsets[-1], -1)
        ends = self.context_lengths.cumsum()
        shift_B = np.array(self.response_offsets[:-1]) - (ends - self.context_lengths)
        spread_R[np.arange(len(numbers)) + shift_B.repeat(self.context_lengths)] = numbers
        return spread_R

    def _stream_lengths(self) -> NDArray[np.int64]:
        """Of each sequence of the stream, the padding included."""
        lengths = np.maximum(self.prompt_lengths + self.response_lengths - 1, 1)
        return np.append(lengths, self.num_padding) if self.num_padding else lengths

    def _stream(self) -> NDArray[np.int64]:
        lengths = self.prompt_lengths + self.response_lengths
        kept = np.delete(self.tokens, lengths.cumsum()[lengths > 1] - 1)
        return np.append(kept, np.full(self.num_padding, _PAD_TOKEN)).astype(np.int64)

    def _targets(self) -> NDArray[np.int64]:
        """The response tokens."""
        parts = np.stack((self.prompt_lengths, self.response_lengths), axis=1).ravel()
        is_response = np.tile([False, True], len(self.sample_ids)).repeat(parts)
        return self.tokens[is_response].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMicroBatch:
    """The tensors of one micro-batch in THD packing. Only response tokens have entries in the _R tensors."""

    tokens_S: Tensor
    """int64."""
    position_S: Tensor
    """int64, from 0 in each sequence."""
    cu_seqlens: Tensor
    """int32 [sequences + 1]: where each sequence starts in the stream; the padding is the last sequence."""
    lengths: tuple[int, ...]
    """Of the sequences, likewise: what needs them need not ask the device."""
    num_samples: int
    """B."""
    response_index_R: Tensor
    """int64: the stream position whose logits predict the response token, i.e. that of the token before it."""
    target_R: Tensor
    """int64: the response tokens."""
    weight_R: Tensor
    """float32: aggregation weight of the token."""
    sequence_R: Tensor
    """int64: which of the B samples."""
    position_R: Tensor
    """int64: position in the response, from 0."""
    sample_id_R: Tensor
    """int64: the caller's name of the sample."""
    context_R: Tensor
    """int64: tokens of the mini-batch that follow the same prompt and response so far have equal numbers, from 0; -1:
    no other token does."""
    outcome_R: Tensor
    """int64: the same of tokens that are equal themselves, too."""
    columns_R: Mapping[str, Tensor]
    """The samples' columns by name, in their dtypes, those of a sample repeated for its tokens; one that no sample has
    is not there."""


MiniBatch = tuple[PackedSamples, ...]
"""One optimizer update of one data-parallel rank: micro-batches, as many as on every other rank."""

BatchShard = tuple[MiniBatch, ...]
"""One data-parallel rank's share of a step: its part of every mini-batch, in order."""


def split_by_sample(values_R: Tensor | NDArray[Any], batch: PackedSamples) -> list[Any]:
    """Per-response-token values [R, ...] as one array per sample, in the order packed; views of `values_R`."""
    offsets = batch.response_offsets
    if values_R.shape[0] != offsets[-1]:
        raise ValueError(f"{values_R.shape[0]} values for a micro-batch of {offsets[-1]} response tokens")
    return [values_R[start:stop] for start, stop in pairwise(offsets)]


def _tensor(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """A copy: what came from another process may not be written to."""
    return torch.tensor(array).to(device, non_blocking=True)
