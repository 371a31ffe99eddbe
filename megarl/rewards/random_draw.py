"""Rewards that do not look at the answer (the control of arXiv 2509.26114 and 2506.10947).

A draw is a function of (seed, step, prompt, sample) through Philox's key and counter: no state, so neither order nor
process nor batch size changes it.
"""

from typing import assert_never

import numpy as np

from megarl.config.reward import RandomReward

_STREAM = 0x7265776172640001  # keeps these draws apart from any other use of the run's seed
_WORD = (1 << 64) - 1


def draw_random_reward(config: RandomReward, *, seed: int, step: int, prompt_index: int, sample_index: int) -> float:
    """One reward; prompt_index is the position in the step's batch."""
    # The lowest counter word is left 0: Philox advances it within one draw.
    counter = np.array([0, step & _WORD, prompt_index & _WORD, sample_index & _WORD], dtype=np.uint64)
    key = np.array([seed & _WORD, _STREAM], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
    match config.distribution:
        case "bernoulli":
            return float(generator.random() < config.p)
        case "uniform":
            return float(generator.random())
        case "gaussian":
            return float(generator.normal(config.mean, config.std))
    assert_never(config.distribution)
