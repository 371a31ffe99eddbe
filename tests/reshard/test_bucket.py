"""Packing: what comes out is what went in, within bounds, whatever the sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.reshard.bucket import ALIGNMENT, TensorEntry, pack_buckets, unpack_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.float64)
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=20)


def build(specs: list[tuple[tuple[int, ...], torch.dtype]]) -> list[tuple[str, Tensor]]:
    return [(f"t{i}", (torch.randn(shape) * 50).to(dtype)) for i, (shape, dtype) in enumerate(specs)]


@given(TENSORS, st.integers(1, 1000))
@settings(deadline=None)
def test_round_trip_order_bounds_and_alignment(specs: list, bucket_bytes: int) -> None:
    tensors = build(specs)
    unpacked = []
    for index, bucket in enumerate(pack_buckets(tensors, bucket_bytes)):
        assert bucket.index == index
        assert bucket.num_bytes <= bucket_bytes or len(bucket.entries) == 1
        assert all(entry.offset % ALIGNMENT == 0 for entry in bucket.entries)
        for entry in bucket.entries:
            assert TensorEntry.from_json(entry.as_json()) == entry
            unpacked.append((entry.name, unpack_tensor(bucket.buffer, entry)))
    assert [name for name, _ in unpacked] == [name for name, _ in tensors]
    for (_, got), (_, sent) in zip(unpacked, tensors, strict=True):
        assert got.dtype == sent.dtype
        assert got.shape == sent.shape
        assert torch.equal(got, sent)


def test_hand_computed_offsets() -> None:
    # 40 bytes -> next at 64; 24 bytes -> next at 128; 40 bytes would end at 168 > 160, so it starts a bucket.
    tensors = [("a", torch.zeros(10)), ("b", torch.zeros(6)), ("c", torch.zeros(10)), ("big", torch.zeros(50))]
    buckets = list(pack_buckets(tensors, 160))
    assert [[(e.name, e.offset) for e in bucket.entries] for bucket in buckets] == [
        [("a", 0), ("b", 64)],
        [("c", 0)],
        [("big", 0)],
    ]
    assert [bucket.num_bytes for bucket in buckets] == [88, 40, 200]


def test_asks_for_one_buffer_per_bucket_and_one_tensor_at_a_time() -> None:
    alive: list[str] = []
    asked: list[tuple[int, int]] = []

    def gather():
        for name in "abc":
            alive.append(name)
            yield name, torch.ones(4)

    def buffer_for(index: int, least: int) -> Tensor:
        asked.append((index, least))
        return torch.empty(least, dtype=torch.uint8)

    buckets = pack_buckets(gather(), 16, buffer_for)
    next(buckets)
    assert alive == ["a", "b"]  # "b" showed that the bucket of "a" is full; "c" is not gathered yet
    list(buckets)
    assert asked == [(0, 16), (1, 16), (2, 16)]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.ones(1)), ("a", torch.ones(1))], "came twice"),
        ([("a", torch.ones(1, device="meta"))], "meta device"),
    ],
)
def test_bad_input(tensors: list[tuple[str, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pack_buckets(tensors, 100))
