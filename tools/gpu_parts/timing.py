"""Seconds and ceilings on a device, and what its maker says it can do."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12, "B300": 2250e12}
"""Dense bfloat16 products of the SXM cards, from NVIDIA's data sheets; a PCIe card is slower."""


class Ceilings(NamedTuple):
    """Measured here, in this process."""

    copy: float
    """Bytes a second that a copy within the device's memory reads and writes."""
    product: float
    """FLOP a second of a bfloat16 product of square matrices."""


def measure_ceilings(device: str) -> Ceilings:
    return Ceilings(_copy_rate(device), _product_rate(device))


def _copy_rate(device: str) -> float:
    numbers = 1 << 29 if device == "cuda" else 1 << 20
    source, target = torch.randn(numbers, device=device), torch.empty(numbers, device=device)
    return 2 * source.nbytes / median_s(lambda: target.copy_(source), device, repeats=9)


def _product_rate(device: str) -> float:
    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_s(lambda: a @ b, device, repeats=9)


def median_s(work: Callable[[], Any], device: str, *, repeats: int = 5, warm: int = 2) -> float:
    """Of one call, by the device's clock where it has one: with what the host does in it, when the device waits."""
    for _ in range(warm):
        work()
    return statistics.median(_device_s(work) if device == "cuda" else wall_s(work, device)[0] for _ in range(repeats))


def _device_s(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def wall_s(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds until the device has done it, and the result."""
    synchronise(device)
    started = time.perf_counter()
    result = work()
    synchronise(device)
    return time.perf_counter() - started, result


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: str) -> float | None:
    """What the maker says of this card; None for one that is not in the table."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)
