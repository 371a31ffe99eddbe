"""Random numbers that belong to tokens: a hash of (seed, step, sample, position), and nothing else.

There is no generator state, so a token draws the same number on any rank and device, in any micro-batch and order,
and after a resume. The hash feeds the four integers one after the other through SplitMix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MANTISSA_BITS = 53


def token_keys(*, seed: int, step: int, sample_id_T: Tensor, position_T: Tensor) -> Tensor:
    """int64 [T], uniform over all 2^64 values: one key for each (sample_id, position), of int64 tensors.

    Two tokens of a step have equal keys with probability 2^-64. `seed` and `step` count modulo 2^64.
    """
    start = torch.zeros(1, dtype=torch.int64, device=sample_id_T.device)
    of_step = _absorb(_absorb(start, _signed(seed & _MASK)), _signed(step & _MASK))
    return _absorb(_absorb(of_step, sample_id_T), position_T)


def token_uniforms(*, seed: int, step: int, sample_id_T: Tensor, position_T: Tensor, stream: int) -> Tensor:
    """float64 [T], uniform over the multiples of 2^-53 in [0, 1). Other streams, and `token_keys`, draw others."""
    keys_T = token_keys(seed=seed, step=step, sample_id_T=sample_id_T, position_T=position_T)
    return _shift_right(_absorb(keys_T, stream), 64 - _MANTISSA_BITS).to(torch.float64) * 2.0**-_MANTISSA_BITS


def _absorb(state_T: Tensor, value: Tensor | int) -> Tensor:
    """SplitMix64's finaliser of (state ^ value) + golden; int64 arithmetic wraps around, as unsigned does."""
    mixed_T = (state_T ^ value) + _signed(_GOLDEN)
    mixed_T = (mixed_T ^ _shift_right(mixed_T, _SHIFTS[0])) * _signed(_FACTORS[0])
    mixed_T = (mixed_T ^ _shift_right(mixed_T, _SHIFTS[1])) * _signed(_FACTORS[1])
    return mixed_T ^ _shift_right(mixed_T, _SHIFTS[2])


def _shift_right(bits_T: Tensor, shift: int) -> Tensor:
    """Logical shift: torch's own copies the sign."""
    return (bits_T >> shift) & ((1 << (64 - shift)) - 1)


def _signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits
