"""The prompt sampler: coverage, determinism, exact resume."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.data.sampler import PromptSampler


@given(num_prompts=st.integers(1, 20), batch=st.integers(1, 30), seed=st.integers(-5, 2**40), drawn=st.integers(0, 10))
def test_every_prompt_once_per_epoch_and_resume_is_exact(num_prompts: int, batch: int, seed: int, drawn: int) -> None:
    sampler = PromptSampler(num_prompts, batch, seed=seed)
    stream = [index for _ in range(drawn) for index in sampler.next_batch()]
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = PromptSampler(num_prompts, batch, seed=seed)
    resumed.load_state_dict(state)
    assert sampler.epoch == resumed.epoch == drawn * batch / num_prompts
    for _ in range(5):
        following = sampler.next_batch()
        assert len(following) == batch
        assert following == resumed.next_batch()
        stream += following
    for start in range(0, len(stream) - num_prompts + 1, num_prompts):
        assert sorted(stream[start : start + num_prompts]) == list(range(num_prompts))


def test_epochs_and_seeds_differ_and_no_global_state_is_used() -> None:
    def order(seed: int, epochs: int = 1) -> list[int]:
        sampler = PromptSampler(50, 50, seed=seed)
        return [sampler.next_batch() for _ in range(epochs)][-1]

    np.random.seed(0)
    first = order(1)
    np.random.seed(1)
    assert first == order(1)
    others = [order(1, 2), order(2), order(-1), list(range(50))]
    assert all(first != other for other in others)


def test_batch_size_does_not_change_the_order() -> None:
    small, large = PromptSampler(7, 2, seed=3), PromptSampler(7, 14, seed=3)
    assert [i for _ in range(7) for i in small.next_batch()] == large.next_batch()


def test_drawing_by_the_number_is_the_same_stream() -> None:
    batches, drawn = PromptSampler(7, 3, seed=3), PromptSampler(7, 5, seed=3)
    expected = [i for _ in range(4) for i in batches.next_batch()]
    assert [*drawn.draw(1), *drawn.draw(4), *drawn.next_batch(), *drawn.draw(2)] == expected
    assert drawn.state_dict() == batches.state_dict()
    with pytest.raises(ValueError, match="at least one prompt, found 0"):
        drawn.draw(0)


def test_without_shuffle_prompts_come_in_order() -> None:
    sampler = PromptSampler(3, 4, seed=0, shuffle=False)
    assert [sampler.next_batch(), sampler.next_batch()] == [[0, 1, 2, 0], [1, 2, 0, 1]]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (PromptSampler(9, 2, seed=0), "number of prompts was 8 .* is 9 now"),
        (PromptSampler(8, 2, seed=1), r"train\.seed was 0 .* is 1 now"),
        (PromptSampler(8, 2, seed=0, shuffle=False), r"data\.shuffle was True"),
        (PromptSampler(8, 2, seed=0, digest="0b"), r"digest of problems, answers and tokens .* was  .* is 0b now"),
    ],
)
def test_resume_with_other_data_is_an_error(other: PromptSampler, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        other.load_state_dict(PromptSampler(8, 2, seed=0).state_dict())


def test_resume_with_a_foreign_state_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has keys \['step'\], expected"):
        PromptSampler(8, 2, seed=0).load_state_dict({"step": 3})
