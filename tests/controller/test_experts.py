"""The data set's answers beside the responses: what is scored, and which position gets what."""

import math

import numpy as np
import pytest

from megarl.controller.experts import align
from megarl.controller.mismatch import NonFiniteLogpError
from megarl.records import Floats, as_floats
from tests.controller.fakes import PROMPTS, Recorder, make_config, run

GUIDED = {"auxiliary": {"guided": {}}}
ANSWERS = [(9,), (9, 10, 11), (8, 9), (7,), (7, 7), (12,)]
EXPERTS = [(prompt.token_ids, answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


def same(left: Floats, right: list[float]) -> bool:
    """Equal, where a NaN equals a NaN."""
    return np.array_equal(left, right, equal_nan=True)


def test_alignment_is_by_position() -> None:
    assert align(as_floats([-1.0, -2.0, -3.0]), 2).tolist() == [-1.0, -2.0]
    assert same(align(as_floats([-1.0]), 3), [-1.0, math.nan, math.nan])
    assert align(as_floats([-1.0]), 0).tolist() == []


def test_every_sample_gets_its_prompts_answer() -> None:
    recorder = Recorder()
    run(make_config(GUIDED, steps=2), recorder, experts=EXPERTS)
    # The policy gives token t the log-prob 6 - t; responses have two tokens.
    first, second = recorder.records
    assert all(same(sample.expert_logp, [-3.0, math.nan]) for sample in first.samples[:2])
    assert all(same(sample.expert_logp, [-3.0, -4.0]) for sample in first.samples[2:])
    assert all(same(sample.expert_logp, [-2.0, -3.0]) for sample in second.samples[:2])
    assert recorder.calls[:4] == ["generate", "reward", "expert_logp", "old_logp"]


def test_a_prompt_is_scored_once_and_what_is_trained_on_carries_it() -> None:
    recorder = Recorder()
    run(make_config(GUIDED, steps=1, prompts_per_step=8), recorder, experts=EXPERTS)
    scored, held = recorder.scored
    # Eight prompts of six: two come twice, their answers once.
    assert sum(len(batch.sample_ids) for shard in scored for mini in shard for batch in mini) == 6
    assert all("expert_logp" in batch.per_token for shard in held for mini in shard for batch in mini)


def test_data_parallel_ranks_get_equally_many() -> None:
    config = make_config(GUIDED, steps=1, prompts_per_step=3, mini_batch_responses=6)
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update={"world_size": 2})})
    recorder = Recorder()
    run(config, recorder, experts=EXPERTS)
    scored = recorder.scored[0]
    assert len(scored) == 2
    ids = sorted(i for shard in scored for mini in shard for batch in mini for i in batch.sample_ids)
    # Three answers, the first repeated so that both ranks have work.
    assert ids == [0, 1, 2, 3]
    assert all(same(sample.expert_logp, [-3.0, math.nan]) for sample in recorder.records[0].samples[:2])


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"answer 0 belongs to another prompt"):
        run(make_config(GUIDED), Recorder(), experts=[((5, 5), (9,))] * 6)
    with pytest.raises(NonFiniteLogpError, match=r"answers to prompts \[0, 1\] are not finite"):
        run(make_config(GUIDED), Recorder(offset=math.nan), experts=EXPERTS)
    for config, experts in ((make_config(GUIDED), None), (make_config(), EXPERTS)):
        with pytest.raises(ValueError, match=r"where objective\.auxiliary\.guided is on"):
            run(config, Recorder(), experts=experts)
