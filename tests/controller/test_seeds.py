"""The seeds of samples are those of numpy's SeedSequence."""

import random

import numpy as np
import pytest

from megarl.controller.seeds import evaluation_seeds, sample_seeds


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


def test_a_problem_is_asked_with_its_own_seeds_whichever_others_are_asked() -> None:
    every = evaluation_seeds(3, "math500", [0, 0, 5, 5], [0, 1, 0, 1])
    assert evaluation_seeds(3, "math500", [5, 5], [0, 1]) == every[2:]
    assert len({*every, *evaluation_seeds(3, "gsm8k", [0, 0, 5, 5], [0, 1, 0, 1])}) == 8
    assert not {*every} & {*evaluation_seeds(4, "math500", [0, 0, 5, 5], [0, 1, 0, 1])}


def test_no_step_of_training_has_the_seeds_of_an_evaluation() -> None:
    trained = [seed for step in range(1, 50) for seed in sample_seeds(0, step, [*range(8)] * 4, [*range(4)] * 8)]
    assert not {*trained} & {*evaluation_seeds(0, "sums", [*range(8)] * 4, [*range(4)] * 8)}
