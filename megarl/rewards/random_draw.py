"""Rewards that do not look at the answer (the control of arXiv 2509.26114 and 2506.10947).

A draw is a function of (seed, step, prompt, sample) through Philox's key and counter: no state, so neither order nor
process nor batch size changes it.
"""

import threading
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from megarl.config.reward import RandomReward

_STREAM = 0x7265776172640001  # keeps these draws apart from any other use of the run's seed
_WORD = (1 << 64) - 1
_EMPTY = np.zeros(4, dtype=np.uint64)
"""Philox's buffer with nothing in it to hand out."""
_generators = threading.local()
"""A generator of each thread. A draw depends on nothing that one before it left, see `_generator_at`."""


def draw_random_reward(config: RandomReward, *, seed: int, step: int, prompt_index: int, sample_index: int) -> float:
    """One reward; prompt_index is the position in the step's batch."""
    # The lowest counter word is left 0: Philox advances it within one draw.
    counter = np.array([0, step & _WORD, prompt_index & _WORD, sample_index & _WORD], dtype=np.uint64)
    key = np.array([seed & _WORD, _STREAM], dtype=np.uint64)
    generator = _generator_at(counter, key)
    match config.distribution:
        case "bernoulli":
            return float(generator.random() < config.p)
        case "uniform":
            return float(generator.random())
        case "gaussian":
            return float(generator.normal(config.mean, config.std))
    assert_never(config.distribution)


def _generator_at(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> np.random.Generator:
    """Equal to Generator(Philox(counter=counter, key=key)), which takes ten times as long: it reads entropy first."""
    made: np.random.Generator | None = getattr(_generators, "made", None)
    if made is None:
        made = _generators.made = np.random.Generator(np.random.Philox(key=0))
    made.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        "buffer": _EMPTY,
        "buffer_pos": len(_EMPTY),
        "has_uint32": 0,
        "uinteger": 0,
    }
    return made
