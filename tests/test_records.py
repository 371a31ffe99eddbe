"""Responses that cross a process border together come apart as they were."""

import pickle

import numpy as np
import pytest

from megarl.records import PackedRollouts, Rollout, TokenScores, group_by_tokens


def make_rollout(prompt: list[int], response: list[int], **fields: object) -> Rollout:
    facts = {"stop_reason": "stop", "policy_version": 3} | fields
    logps = -np.arange(len(response), dtype=np.float32)
    return Rollout(prompt=prompt, response=response, behavior_logp=logps, **facts)  # type: ignore[arg-type]


ROLLOUTS = [
    make_rollout([1, 2, 3], [4, 5]),
    make_rollout([1], []),
    make_rollout([7, 8], [9, 10, 11], stop_reason="length", policy_version=4),
]


@pytest.mark.parametrize("count", [1, 3])
def test_they_come_apart_as_they_were(count: int) -> None:
    packed = pickle.loads(pickle.dumps(PackedRollouts.of(ROLLOUTS[:count])))
    assert packed.unpack() == ROLLOUTS[:count]
    assert all(rollout.behavior_logp.dtype == np.float32 for rollout in packed.unpack())


def test_arrays_are_pickled_together() -> None:
    """However many responses there are."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(PackedRollouts.of(ROLLOUTS * 100), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 5


def test_neighbours_are_grouped_until_they_have_enough_tokens() -> None:
    texts = ["abc", "", "de", "f", "ghijklm", "", "n"]
    assert list(group_by_tokens(texts, len, at_least=5)) == [["abc", "", "de"], ["f", "ghijklm"], ["", "n"]]
    assert list(group_by_tokens([], len, at_least=5)) == []


def test_an_array_of_the_declared_dtype_is_kept_and_every_other_becomes_one() -> None:
    logps = np.array([-1.0, -2.0], dtype=np.float32)
    read_back = pickle.loads(pickle.dumps(logps))
    for given in (logps, read_back):
        assert TokenScores(sample_id=0, old_logp=given, old_entropy=given).old_logp is given
    swapped = logps.astype(">f4")
    for given in ((-1.0, -2.0), logps.astype(np.float64), swapped):
        scores = TokenScores(sample_id=0, old_logp=given, old_entropy=given)  # type: ignore[arg-type]
        assert scores.old_logp.dtype == np.float32
        assert scores.old_logp.tolist() == [-1.0, -2.0]
