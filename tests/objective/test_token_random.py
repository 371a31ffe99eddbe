import itertools
import math

import torch

from megarl.objective.token_random import token_keys, token_uniforms


def keys(samples, positions, *, seed=3, step=7):
    return token_keys(
        seed=seed,
        step=step,
        sample_id_T=torch.tensor(samples, dtype=torch.int64),
        position_T=torch.tensor(positions, dtype=torch.int64),
    )


def splitmix(*numbers):
    """The hash in Python's own integers."""
    mask, state = 2**64 - 1, 0
    for number in numbers:
        state = ((state ^ (number & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state - 2**64 if state >> 63 else state


def grid(num_samples, num_positions):
    pairs = list(itertools.product(range(num_samples), range(num_positions)))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def test_the_finaliser_is_splitmix64():
    # Vigna's splitmix64.c with state 0: the first output.
    assert splitmix(0) == 0xE220A8397B1DCDAF - 2**64


def test_keys_are_the_hash_of_the_four_integers():
    numbers = [(0, 1, 0, 0), (3, 7, 12, 4096), (2**63 + 5, 9, 2**40, 17), (-1, 1, 5, 2**31)]
    for seed, step, sample, position in numbers:
        assert keys([sample], [position], seed=seed, step=step).item() == splitmix(seed, step, sample, position)


def test_a_token_draws_the_same_number_in_any_company():
    samples, positions = grid(5, 9)
    together = keys(samples, positions)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(0))
    shuffled = keys([samples[i] for i in order], [positions[i] for i in order])
    assert torch.equal(shuffled, together[order])
    assert torch.equal(torch.cat([keys([s], [p]) for s, p in zip(samples, positions, strict=True)]), together)
    assert keys([], []).shape == (0,)


def test_every_input_matters_and_no_key_repeats():
    samples, positions = grid(300, 300)
    columns = [keys(samples, positions, seed=seed, step=step) for seed, step in ((1, 1), (1, 2), (2, 1))]
    assert torch.cat(columns).unique().numel() == 3 * 90_000


def test_keys_are_uniform_and_uncorrelated_with_place_and_step():
    samples, positions = grid(400, 250)
    num = len(samples)
    first, following = (keys(samples, positions, step=step) for step in (1, 2))
    uniform = first.double() / 2.0**64 + 0.5
    assert abs(uniform.mean().item() - 0.5) < 4 / (12 * num) ** 0.5
    # Chi-square of 256 equal bins, of the highest and of the lowest byte: mean 255, standard deviation 22.6.
    for byte_T in ((first >> 56) + 128, first & 255):
        counts = torch.bincount(byte_T, minlength=256).double()
        chi_square = ((counts - num / 256).square() / (num / 256)).sum().item()
        assert 255 - 5 * 22.6 < chi_square < 255 + 5 * 22.6
    places = torch.stack(
        [uniform, following.double(), torch.tensor(samples).double(), torch.tensor(positions).double()]
    )
    correlation = torch.corrcoef(places)[0, 1:]
    assert correlation.abs().max().item() < 5 / num**0.5
    neighbours = torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1]
    assert abs(neighbours.item()) < 5 / num**0.5


def test_each_bit_of_the_input_flips_half_of_the_output():
    base = splitmix(11, 3, 1000, 77) & (2**64 - 1)
    flips = []
    for bit in range(40):
        changed = keys([1000 ^ (1 << bit)], [77], seed=11, step=3).item() & (2**64 - 1)
        flips.append((base ^ changed).bit_count())
    assert 28 < sum(flips) / len(flips) < 36


def uniforms(samples, positions, stream):
    ids = [torch.tensor(numbers, dtype=torch.int64) for numbers in (samples, positions)]
    return token_uniforms(seed=3, step=7, sample_id_T=ids[0], position_T=ids[1], stream=stream)


def test_uniforms_are_the_leading_bits_of_the_hash_and_the_stream():
    for sample, position, stream in ((0, 0, 1), (12, 4096, 1), (2**40, 17, 2)):
        expected = (splitmix(3, 7, sample, position, stream) % 2**64 >> 11) / 2**53
        assert uniforms([sample], [position], stream).item() == expected


def test_uniforms_are_even_and_of_their_stream_alone():
    samples, positions = grid(100, 200)
    one, other = (uniforms(samples, positions, stream) for stream in (1, 2))
    assert 0 <= one.min() < 1e-3
    assert 1 - 1e-3 < one.max() < 1
    assert abs(one.mean().item() - 0.5) < 4 / math.sqrt(12 * len(one))
    assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1].item()) < 4 / math.sqrt(len(one))
    order = keys(samples, positions).double()
    assert abs(torch.corrcoef(torch.stack((one, order)))[0, 1].item()) < 4 / math.sqrt(len(one))
