"""The accounting does not depend on how a mini-batch lies over ranks and micro-batches."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.objective.accounting import collect_token_sums
from megarl.objective.token_sums import (
    MAX_NAMES,
    SUM_NAMES,
    TokenSums,
    merge_token_sums,
    to_metrics,
)
from megarl.objective.tokens import TokenBatch, TokenLoss
from tests.objective.accounting import compute
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens


class ThreadRanks:
    """`Reduce` among threads that stand for ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=20)
        self._values: dict[int, Tensor] = {}

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values)).sum(0)

    def max(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values)).amax(0)

    def _exchange(self, values: Tensor) -> list[Tensor]:
        self._values[threading.get_ident()] = values
        self._barrier.wait()
        everything = list(self._values.values())
        self._barrier.wait()
        self._values.pop(threading.get_ident())
        self._barrier.wait()
        return everything


def random_tokens(lengths: Sequence[int], seed: int, first_id: int = 0) -> list[TokenBatch]:
    """One batch per response; each is a function of its id alone. Entropies are few, so quintile edges have ties."""
    batches = []
    for sample_id, length in enumerate(lengths, start=first_id):
        generator = torch.Generator().manual_seed(seed * 1000 + sample_id)
        draw = torch.rand(5, length, generator=generator)
        batches.append(
            make_tokens(
                [length],
                sample_ids=[sample_id],
                logp=-3 * draw[0] - 0.01,
                old_logp=-3 * draw[0] - 0.01 + draw[1] - 0.5,
                entropy=(4 * draw[2]).round() / 2,
                expected_q=draw[3] / 4,
                advantage=(3 * draw[4]).round() - 1.5,
                weight=1 / sum(lengths) if sum(lengths) else 0.0,
                dtype=torch.float32,
            )
        )
    return batches


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_any_split_over_ranks_and_micro_batches_gives_the_same_sums(
    lengths: list[int], cuts: list[int], seed: int
) -> None:
    batches = random_tokens(lengths, seed)
    losses = [compute(batch) for batch in batches]
    whole = TokenBatch.concatenate(batches)
    expected = collect_token_sums(whole, compute(whole), SingleRank())

    edges = [0, *sorted(min(cut, len(batches)) for cut in cuts), len(batches)]
    shares = [slice(start, stop) for start, stop in pairwise(edges)]
    ranks = ThreadRanks(len(shares))
    nothing = make_tokens([], advantage=[], dtype=torch.float32)

    def collect(share: slice) -> TokenSums:
        tokens = TokenBatch.concatenate(batches[share] or [nothing])
        loss = TokenLoss.concatenate(losses[share] or [compute(nothing)])
        return collect_token_sums(tokens, loss, ranks)

    with ThreadPoolExecutor(len(shares)) as pool:
        merged = merge_token_sums(pool.map(collect, shares))
    assert merged.max_M.tolist() == expected.max_M.tolist()
    assert len(merged.max_M) == len(MAX_NAMES)
    for name, got, wanted in zip(SUM_NAMES, merged.sum_N.tolist(), expected.sum_N.tolist(), strict=True):
        # The losses' own scalars are float32 sums made before the accounting sees them.
        tolerance = 1e-6 if name in ("loss", "auxiliary_loss") else 1e-13
        assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance), name
    assert to_metrics(merged).keys() == to_metrics(expected).keys()
