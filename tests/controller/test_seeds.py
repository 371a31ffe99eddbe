"""The seeds of samples are those of numpy's SeedSequence."""

import random

import numpy as np
import pytest

from megarl.controller.seeds import sample_seeds


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1, 2**100 + 3])
@pytest.mark.parametrize("step", [1, 40_000, 2**33])
def test_seeds_are_those_of_a_seed_sequence(seed: int, step: int) -> None:
    draw = random.Random(f"{seed} {step}")
    positions = [0, 1, 2**32 - 1, *(draw.randrange(2**32) for _ in range(20))]
    samples = [draw.randrange(64) for _ in positions]
    expected = [
        int(np.random.SeedSequence((seed, step, position, sample)).generate_state(1)[0])
        for position, sample in zip(positions, samples, strict=True)
    ]
    assert sample_seeds(seed, step, positions, samples) == expected


def test_there_are_seeds_for_no_sample_and_none_of_a_negative_number() -> None:
    assert sample_seeds(0, 1, [], []) == []
    with pytest.raises(ValueError, match="-1 is negative"):
        sample_seeds(-1, 1, [0], [0])
