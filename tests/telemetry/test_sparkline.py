"""Curves in a line of text."""

import math

import pytest

from megarl.telemetry.sparkline import ASCII_LEVELS, sparkline


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, 0], "█▁"),
        ([3], "▄"),
        ([3, 3, 3], "▄▄▄"),
        ([-1, math.nan, 1], "▁ █"),
        ([0, math.inf, 1], "▁ █"),
        ([math.nan], ""),
        ([], ""),
    ],
)
def test_from_lowest_to_highest(values: list[float], drawn: str) -> None:
    assert sparkline(list(enumerate(values)), width=8) == drawn


def test_a_character_is_the_mean_of_its_steps() -> None:
    points = [(step, value) for step, value in enumerate([0, 2, 4, 4, 9, 9])]
    assert sparkline(points, width=3) == "▁▄█"  # means 1, 4, 9


def test_steps_without_a_value_are_blank_at_their_place() -> None:
    points = [(0, 1.0), (1, 1.0), (2, 1.0), (9, 2.0), (10, 2.0)]
    assert sparkline(points, width=4) == "▁  █"


def test_never_wider_than_asked() -> None:
    for count in (1, 7, 8, 9, 100, 1000):
        points = [(step, float(step)) for step in range(count)]
        assert len(sparkline(points, width=8)) == min(count, 8)
    assert sparkline([(0, 1.0)], width=0) == ""


def test_a_terminal_of_ascii() -> None:
    assert sparkline([(step, step) for step in range(8)], width=8, levels=ASCII_LEVELS) == ASCII_LEVELS
