"""What a process reads of its own memory: the real one of this machine; a GPU's numbers by a stand-in whose calls are
compared with torch's."""

import inspect
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.parallel.memory_meter import MemoryMeter, MeteredPhases
from megarl.telemetry import resident_memory
from megarl.telemetry.memory_phases import MemoryUse

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
MIB = 1 << 20


def use_and_return(size: int) -> None:
    """Pages that this process has and gives back."""
    with mmap.mmap(-1, size) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


def test_a_peak_is_of_the_time_since_the_last_reading() -> None:
    meter = MemoryMeter(CPU)
    meter.read()
    use_and_return(200 * MIB)
    high, low = meter.read(), meter.read()
    assert high.peak is not None
    assert high.end is not None
    assert low.peak is not None
    assert 190 * MIB < high.peak - high.end < 260 * MIB
    assert low.peak < high.peak - 190 * MIB, "the peak begins anew"
    assert (high.gpu_in_use, high.gpu_peak, high.gpu_total, high.tensors) == (None, None, None, None)


def test_phases_are_measured_as_they_end() -> None:
    phases = MeteredPhases(CPU)
    phases.enter("generate")
    phases.enter("update")
    use_and_return(200 * MIB)
    phases.enter("update")  # it is on
    phases.enter("publish")
    phases.enter(None)
    told = phases.report()
    assert list(told) == ["generate", "update", "publish"]
    peaks = {name: use.peak or 0 for name, use in told.items()}
    assert peaks["update"] > max(peaks["generate"], peaks["publish"]) + 190 * MIB


def test_where_the_peak_cannot_be_reset_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resident_memory, "CLEAR_REFS", tmp_path / "not" / "here")
    caplog.set_level("INFO")
    use = MemoryMeter(CPU).read()
    assert use.peak is None
    assert use.end is not None
    assert "without peaks" in caplog.text
    monkeypatch.setattr(resident_memory, "_STATUS", tmp_path / "nor" / "this")
    assert MemoryMeter(CPU).read() == MemoryUse()


class Card:
    """torch.cuda's memory of a device: 40 of 100 in use, 10 of them reserved by this process, 25 at its peak."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.peak = 25

    def __getattr__(self, name: str) -> Any:
        values = {"memory_reserved": 10, "max_memory_allocated": 22, "mem_get_info": (60, 100)}

        def call(*arguments: Any) -> Any:
            assert arguments == (GPU,)
            inspect.signature(ORIGINALS[name]).bind(*arguments)
            self.calls.append(name)
            if name == "reset_peak_memory_stats":
                self.peak = 10
                return None
            return self.peak if name == "max_memory_reserved" else values[name]

        return call


NAMES = ("memory_reserved", "max_memory_reserved", "max_memory_allocated", "mem_get_info", "reset_peak_memory_stats")
ORIGINALS = {name: getattr(torch.cuda, name) for name in NAMES}


def test_of_a_gpu_the_allocator_and_the_driver_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    for name in NAMES:
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    meter = MemoryMeter(GPU)
    # At its peak this process had 15 more than now, and with it the GPU.
    assert meter.read() == MemoryUse(peak=25, end=10, tensors=22, gpu_in_use=40, gpu_peak=55, gpu_total=100)
    assert card.calls[-1] == "reset_peak_memory_stats"
    assert meter.read().gpu_peak == 40
