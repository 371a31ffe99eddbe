"""Kernels of packed attention: the best that is there, chosen once and named."""

import inspect

import pytest
import torch

from megarl.parallel import attention_choice
from megarl.parallel.attention_choice import _BY_CAPABILITY, choose_attention, known_implementations, use_attention

HALF, FULL = torch.bfloat16, torch.float32
OWN = "torch's own variable-length flash attention"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "major", "known", "packages", "implementation"),
    [
        (HALF, 9, ["FA3", "FA4"], ["flash_attn_interface"], "FA3"),
        (HALF, 9, ["FA3", "FA4"], ["flash_attn"], None),  # FlashAttention 2
        (HALF, 9, [], ["flash_attn_interface"], None),  # a torch without a registry
        (HALF, 10, ["FA3", "FA4"], ["flash_attn", "flash_attn_interface"], "FA4"),
        (HALF, 8, ["FA3", "FA4"], ["flash_attn_interface"], None),
        (FULL, 9, ["FA3"], ["flash_attn_interface"], None),
        (HALF, None, ["FA3"], ["flash_attn_interface"], None),
    ],
)
def test_the_best_that_is_there(
    dtype: torch.dtype,
    major: int | None,
    known: list[str],
    packages: list[str],
    implementation: str | None,
) -> None:
    chosen = choose_attention(dtype, major=major, known=known, installed=packages.__contains__)
    assert chosen.implementation == implementation
    if implementation:
        assert chosen.name.startswith(f"FlashAttention {implementation[-1]} (")
    else:
        assert chosen.name == OWN or dtype == FULL or major is None


def test_torch_knows_them_by_these_names() -> None:
    """And imports them from these packages."""
    from torch.nn.attention._fa3 import register_flash_attention_fa3
    from torch.nn.attention._fa4 import register_flash_attention_fa4

    assert set(known_implementations()) >= {"FA3", "FA4"}
    for major, register in ((9, register_flash_attention_fa3), (10, register_flash_attention_fa4)):
        module = inspect.signature(register).parameters["module_path"].default
        assert module.split(".")[0] == _BY_CAPABILITY[major][1]


def test_without_a_gpu_it_is_ours() -> None:
    assert use_attention(HALF, CPU).endswith("(parallel.packed_attention)")


def test_a_package_that_torch_cannot_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on this machine, which has no such package; nothing of torch's is replaced then."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(attention_choice, "_installed", lambda _: True)
    said = use_attention(HALF, torch.device("cuda", 0))
    assert said.startswith(
        f"{OWN}, because FlashAttention 3 (flash_attn_interface) by torch's variable-length call does"
    )
    assert "No module named 'flash_attn_interface'" in said
    assert torch.nn.attention.current_flash_attention_impl() is None
