"""Responses that cross a process border together come apart as they were."""

import pickle

import numpy as np
import pytest

from megarl.records import PackedRollouts, Rollout


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
