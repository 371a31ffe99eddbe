"""Who solves what, and the paper's measures of it."""

import math

import numpy as np
import pytest

from megarl.evaluation.support import compare_support


def test_every_problem_is_in_one_class() -> None:
    trained = np.array([[1, 0], [0, 0], [0, 1], [0, 0], [1, 1]], dtype=bool)
    base = np.array([[0, 1], [1, 0], [0, 0], [0, 0], [0, 1]], dtype=bool)
    found = compare_support(trained, base, problems=[10, 11, 12, 13, 14])
    assert (found.preserved, found.lost, found.gained, found.unsolved) == ((10, 14), (11,), (12,), (13,))
    assert (found.retention, found.discovery, found.net_change) == (2 / 3, 1 / 3, 0.0)


def test_measures_of_nothing_are_no_numbers() -> None:
    nothing = np.zeros((2, 3), dtype=bool)
    found = compare_support(nothing, nothing, problems=[0, 1])
    assert found.unsolved == (0, 1)
    assert all(math.isnan(value) for value in (found.retention, found.discovery, found.net_change))


def test_models_with_other_numbers_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many samples"):
        compare_support(np.ones((2, 3), dtype=bool), np.ones((2, 4), dtype=bool), problems=[0, 1])
