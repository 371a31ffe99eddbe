"""The seeds of a step's samples, all at once: numpy's own makes one at a time, as slowly as a response is decoded."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POOL = 4
_MASK = 0xFFFFFFFF


class _Hash:
    """O'Neill's hash of a word, as `numpy.random.SeedSequence` has it: each word with another constant."""

    def __init__(self, constant: int, factor: int) -> None:
        self._constant, self._factor = constant, factor

    def __call__(self, words: Words) -> Words:
        hashed = words ^ np.uint32(self._constant)
        self._constant = self._constant * self._factor & _MASK
        hashed = hashed * np.uint32(self._constant)
        return hashed ^ (hashed >> np.uint32(16))


def sample_seeds(seed: int, step: int, positions: Sequence[int], samples: Sequence[int]) -> list[int]:
    """A 32-bit seed for each (position, sample): SeedSequence((seed, step, position, sample)).generate_state(1)[0].

    It depends on nothing else, so that engines and their number do not change a sample. `positions` are the prompts' in
    the step: a prompt that a step draws twice is sampled anew. Positions and samples are below 2^32; none is negative.
    """
    size = len(positions)
    entropy = [np.full(size, word, dtype=np.uint32) for word in (*_words(seed), *_words(step))]
    entropy += [np.array(positions, dtype=np.uint32), np.array(samples, dtype=np.uint32)]
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    zero = np.zeros(size, dtype=np.uint32)
    pool = [hashed(words) for words in (*entropy, *[zero] * _POOL)[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mix(pool[target], hashed(pool[source]))
    for words in entropy[_POOL:]:
        for target in range(_POOL):
            pool[target] = _mix(pool[target], hashed(words))
    seeds: list[int] = _Hash(0x8B51F9DD, 0x58F38DED)(pool[0]).tolist()
    return seeds


def evaluation_seeds(seed: int, benchmark: str, problems: Sequence[int], samples: Sequence[int]) -> list[int]:
    """A 32-bit seed for each (problem, sample) of a benchmark, whoever is asked: `sample_seeds` of step 0, which
    training has not, with the CRC-32 of the benchmark's name below the seed.

    `problems` are positions in the data set, so that a problem's seeds do not depend on which others are asked.
    """
    return sample_seeds(seed << 32 | zlib.crc32(benchmark.encode()), 0, problems, samples)


def _mix(one: Words, other: Words) -> Words:
    mixed = np.uint32(0xCA01F9DD) * one - np.uint32(0x4973F715) * other
    return mixed ^ (mixed >> np.uint32(16))


def _words(number: int) -> list[int]:
    """32 bits each, the lowest first; at least one."""
    if number < 0:
        raise ValueError(f"{number} is negative; a seed and a step are not")
    words = [number & _MASK]
    while number := number >> 32:
        words.append(number & _MASK)
    return words
