"""Which kernels the attention of packed rows runs on, decided once, when a policy rank starts.

    Transformer Engine there        its own layers, which choose among FlashAttention and cuDNN by themselves
    CUDA, bfloat16 or float16       torch's variable-length call: with FlashAttention 3 on Hopper, or 4 on Blackwell,
                                    where that package is installed and torch can take it; else torch's own kernels
    float32 on CUDA, any on a CPU   `parallel.packed_attention`

cuDNN is not among torch's: its variable-length call has a way to it that is switched off. What was chosen is the log's
to say; FlashAttention 3 and 4 have never run here.
"""

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""What flash attention takes on CUDA."""

_BY_CAPABILITY = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn")}
"""Major compute capability -> torch's name of the kernels made for it, and the package that has them."""


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """A choice."""

    name: str
    """For the log."""
    implementation: str | None = None
    """What torch's own are replaced by, as torch names it."""


def choose_attention(
    dtype: torch.dtype,
    *,
    major: int | None,
    known: Collection[str],
    installed: Callable[[str], bool],
) -> AttentionKernels:
    """major: of the GPU's compute capability, None without a GPU. known: implementations that torch can take.
    installed: whether there is a package of that name."""
    if major is None or dtype not in FLASH_DTYPES:
        return AttentionKernels("batched products and scaled_dot_product_attention (parallel.packed_attention)")
    implementation, package = _BY_CAPABILITY.get(major, ("", ""))
    if implementation in known and installed(package):
        number = implementation.removeprefix("FA")
        return AttentionKernels(f"FlashAttention {number} ({package}) by torch's variable-length call", implementation)
    return AttentionKernels("torch's own variable-length flash attention")


def use_attention(dtype: torch.dtype, device: torch.device) -> str:
    """Choose for this process, and have torch take what was chosen; returns what to say of it.

    A package that torch does not get on with is said, and torch's own kernels stay.
    """
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None
    chosen = choose_attention(dtype, major=major, known=known_implementations(), installed=_installed)
    if chosen.implementation is None:
        return chosen.name
    try:
        torch.nn.attention.activate_flash_attention_impl(chosen.implementation)
    except Exception as error:  # of a package of another version, whatever it raises
        return f"torch's own variable-length flash attention, because {chosen.name} does not start: {error}"
    return chosen.name


def known_implementations() -> list[str]:
    """Beside its own; none before torch had a registry of them."""
    found = getattr(torch.nn.attention, "list_flash_attention_impls", None)
    return [] if found is None else list(found())


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
