"""The log-prob and entropy kernels from logits, against the rate at which the device copies memory.

Forward reads the logits once, backward reads and writes them once: their floor is the time in which a copy reads and
writes as many bytes. Times contain what the host does around the kernels.
"""

from collections.abc import Callable

import torch

from gpu_parts.check import Check
from gpu_parts.kernels import interpret_small_blocks
from gpu_parts.timing import Ceilings, measure_ceilings, median_s
from megarl.parallel.vocab import vocab_parallel_logp_entropy

BF16, FP32 = torch.bfloat16, torch.float32
SHAPES = (
    (8192, 151_936, BF16, False, 0.83),
    (8192, 151_936, FP32, False, 0.9),
    (8192, 151_936, BF16, True, 0.7),
    (16_384, 37_984, BF16, False, 0.65),
    (16_384, 37_984, BF16, True, 0.65),
    (32_768, 151_936, BF16, False, None),
    (8192, 128_256, BF16, False, None),
)
"""Tokens, columns, dtype, with expected q (as training has it), the share of the copy rate that is aimed at. 37,984 is
one of four tensor ranks' part of 151,936."""
SMALL = ((8, 300, FP32, False, None), (6, 152, FP32, True, None))


def run(check: Check) -> None:
    if check.small:
        interpret_small_blocks()
    ceilings = measure_ceilings(check.device)
    check.row(copy_bytes_per_s=ceilings.copy, product_flop_per_s=ceilings.product)
    rates = f"{ceilings.copy / 1e12:.3g} TB/s (read + write), bfloat16 product {ceilings.product / 1e12:.3g} TFLOP/s"
    check.say(f"measured ceilings: copy {rates}")
    for tokens, columns, dtype, expected_q, target in SMALL if check.small else SHAPES:
        name = f"{tokens:,} x {columns:,} {str(dtype).removeprefix('torch.')}{' with expected q' if expected_q else ''}"
        check.attempt(name, measure, check, ceilings, name, tokens, columns, dtype, expected_q, target, need_s=4)


def measure(
    check: Check,
    ceilings: Ceilings,
    name: str,
    tokens: int,
    columns: int,
    dtype: torch.dtype,
    expected_q: bool,
    target: float | None,
) -> None:
    device = check.device
    logits = torch.empty(tokens, columns, device=device, dtype=dtype).normal_(0, 3).requires_grad_()
    targets = torch.randint(0, columns, (tokens,), device=device)
    upstream = [torch.randn(tokens, device=device) for _ in range(2)]

    def forward() -> list[torch.Tensor]:
        view = logits.view(tokens, columns)
        found = vocab_parallel_logp_entropy(
            view, targets, vocab_start=0, vocab_stop=columns, with_expected_q=expected_q
        )
        return [view, found.logp_T, found.entropy_T]

    def both() -> None:
        # The gradient is written over the logits; their values stay small enough to go on with.
        view, *outputs = forward()
        torch.autograd.grad(outputs, [view], upstream)

    memory = extra_bytes(both, device)
    with torch.no_grad():
        logits.normal_(0, 3)
        forward_s = median_s(forward, device)
    both_s = median_s(both, device)
    share = 3 * logits.nbytes / both_s / ceilings.copy
    check.row(
        case=name, forward_s=forward_s, forward_backward_s=both_s, share_of_copy=share, target=target,
        reached=None if target is None else share >= target, extra_bytes=memory, logits_bytes=logits.nbytes,
    )  # fmt: skip
    aim = "" if target is None else f" (aim {target:.0%})"
    said = (
        f"{name}: forward {forward_s * 1e3:.2f} ms, with backward {both_s * 1e3:.2f} ms, {share:.0%} of the copy rate"
    )
    check.say(f"{said}{aim}" + ("" if memory is None else f", +{memory / 2**30:.3f} GiB"))


def extra_bytes(work: Callable[[], None], device: str) -> int | None:
    """The peak beside what is allocated now; None where memory is not counted."""
    if device != "cuda":
        work()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
