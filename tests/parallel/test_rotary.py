"""Rotation of packed rows against complex numbers in float64, and against Megatron-core's own."""

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megarl.parallel.rotary import rotate, rotation_at

LENGTHS = (5, 1, 7)


def draw(heads: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(positions [S], inverse frequencies [D / 2], rows [S, N, D])."""
    torch.manual_seed(0)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    frequencies = 1.0 / 10_000 ** (torch.arange(0, size, 2).float() / size)
    return positions, frequencies, torch.randn(len(positions), heads, size, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("heads", "size"), [(4, 8), (1, 2), (3, 64)])
def test_pairs_turn_by_position_times_frequency(heads: int, size: int) -> None:
    positions, frequencies, rows = draw(heads, size, torch.float64)
    turned = rotate(rows, rotation_at(positions, frequencies, torch.float64))
    first, second = rows.chunk(2, -1)
    angles = (positions[:, None] * frequencies.double())[:, None]
    expected = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_megatrons_bit_for_bit(dtype: torch.dtype) -> None:
    positions, frequencies, rows = draw(4, 16, dtype)
    angles = torch.outer(positions.float(), frequencies)
    expected = _apply_rotary_pos_emb_bshd(rows[:, None], torch.cat((angles, angles), -1)[:, None, None])
    assert torch.equal(rotate(rows, rotation_at(positions, frequencies, dtype)), expected[:, 0])


def test_its_gradient() -> None:
    positions, frequencies, rows = draw(2, 6, torch.float64)
    rotation = rotation_at(positions, frequencies, torch.float64)
    assert torch.autograd.gradcheck(lambda rows: rotate(rows, rotation), rows.requires_grad_())


def test_rows_of_a_wider_tensor() -> None:
    """As queries and keys come: views of one product, not contiguous."""
    positions, frequencies, rows = draw(6, 8, torch.float32)
    rotation = rotation_at(positions, frequencies, torch.float32)
    assert torch.equal(rotate(rows[:, ::2], rotation), rotate(rows[:, ::2].contiguous(), rotation))


def test_it_runs_where_the_rows_are_and_reads_nothing_back() -> None:
    """On torch's device without memory, from which nothing can be read."""
    rows = torch.randn(9, 4, 8, device="meta", requires_grad=True)
    rotation = rotation_at(torch.arange(9, device="meta"), torch.ones(4, device="meta"), torch.float32)
    rotate(rows, rotation).sum().backward()
    assert rows.grad is not None
    assert rows.grad.is_meta
