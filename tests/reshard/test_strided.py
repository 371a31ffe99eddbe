"""Strided copies as boxes, against the elements one by one."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.boxes import Box
from megarl.reshard import strided
from megarl.reshard.strided import NotBoxesError, split_copy


def dot(index: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(index, strides, strict=True))


def unravel(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        element, place = divmod(element, size)
        index.insert(0, place)
    return tuple(index)


@st.composite
def copies(draw: st.DrawFn) -> dict:
    """Arguments of `split_copy`, the source inside its tensor."""
    full = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    size = math.prod(full)
    room, shape, steps = size - 1, [], []
    for _ in range(draw(st.integers(0, 3))):
        length, step = draw(st.integers(1, 4)), draw(st.integers(0, size))
        if (length - 1) * step <= room:
            shape.append(length)
            steps.append(step)
            room -= (length - 1) * step
    to = tuple(draw(st.integers(0, 50)) for _ in shape)
    return {
        "full_shape": full,
        "shape": tuple(shape),
        "source": (draw(st.integers(0, room)), tuple(steps)),
        "target": (draw(st.integers(0, 9)), to),
    }


@settings(max_examples=500, deadline=None)
@given(copies())
def test_boxes_hold_the_elements_of_the_copy(copy: dict) -> None:
    try:
        pieces = list(split_copy("w", copy["full_shape"], **{k: v for k, v in copy.items() if k != "full_shape"}))
    except NotBoxesError:
        return
    found = []
    for box, first, strides in pieces:
        assert box.fits(copy["full_shape"])
        for index in itertools.product(*map(range, box.shape)):
            element = tuple(low + place for low, place in zip(box.start, index, strict=True))
            found.append((element, first + dot(index, strides)))
    (start, steps), (offset, to) = copy["source"], copy["target"]
    expected = [
        (unravel(start + dot(index, steps), copy["full_shape"]), offset + dot(index, to))
        for index in itertools.product(*map(range, copy["shape"]))
    ]
    assert sorted(found) == sorted(expected)


def split(full: tuple[int, ...], shape: tuple[int, ...], source: tuple[int, tuple[int, ...]]) -> list:
    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return list(split_copy("w", full, shape=shape, source=source, target=(0, strides)))


def test_a_block_of_columns() -> None:
    assert split((4, 6), (4, 2), (3, (6, 1))) == [(Box("w", (0, 3), (4, 5)), 0, (2, 1))]


def test_every_second_row_is_a_box_each() -> None:
    assert split((4, 6), (2, 6), (6, (12, 1))) == [
        (Box("w", (1, 0), (2, 6)), 0, (0, 1)),
        (Box("w", (3, 0), (4, 6)), 6, (0, 1)),
    ]


def test_halves_exchanged_in_the_target_are_two_boxes() -> None:
    """Elements 0..2 go to 3..5 and 3..5 to 0..2: one run of the tensor, but not of the target."""
    pieces = split_copy("w", (6,), shape=(2, 3), source=(0, (3, 1)), target=(3, (-3, 1)))
    assert list(pieces) == [(Box("w", (0,), (3,)), 3, (1,)), (Box("w", (3,), (6,)), 0, (1,))]


@pytest.mark.parametrize(
    ("shape", "source", "reason"),
    [
        ((3, 6), (0, (0, 1)), "repeats elements"),
        ((3,), (0, (7,)), "runs across dimensions"),
        ((12,), (0, (1,)), "over the end"),
        ((4,), (4, (1,)), "over the end"),
    ],
)
def test_refusals_say_why(shape: tuple[int, ...], source: tuple[int, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(NotBoxesError, match=reason):
        split((4, 6), shape, source)


def test_too_many_boxes_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "MOST_BOXES", 3)
    assert len(split((6, 6), (3, 6), (0, (12, 1)))) == 3
    with pytest.raises(NotBoxesError, match="the copy falls into 4 separate boxes"):
        split((8, 6), (4, 6), (0, (12, 1)))
