"""What this process uses of the memory in which it computes: of its GPU, or of the machine where there is none.

Invariant: a reading is of the time since the one before, whose end it begins at; it waits for nothing on the device.
"""

import logging

import torch

from megarl.telemetry.memory_phases import ByPhase, MemoryPhases, MemoryUse
from megarl.telemetry.resident_memory import CLEAR_REFS, reset_resident_peak, resident_bytes

_log = logging.getLogger(__name__)


class MemoryMeter:
    """Of one process, which must be alone in reading torch's and the kernel's peaks of itself."""

    def __init__(self, device: torch.device) -> None:
        """device: where the process computes."""
        self._device = device
        self._has_peak = device.type == "cuda" or reset_resident_peak()
        if not self._has_peak:
            _log.info(
                "%s cannot be written: memory is logged as it is at the ends of phases, without peaks", CLEAR_REFS
            )

    def read(self) -> MemoryUse:
        """Since the last reading; nothing where this machine does not tell."""
        return self._read_gpu() if self._device.type == "cuda" else self._read_resident()

    def _read_gpu(self) -> MemoryUse:
        """By torch's caching allocator, whose numbers are the host's, and the driver."""
        device = self._device
        reserved, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
        tensors = torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.reset_peak_memory_stats(device)
        used = total - free
        return MemoryUse(
            peak=peak,
            end=reserved,
            tensors=tensors,
            gpu_in_use=used,
            gpu_peak=min(total, used + peak - reserved),
            gpu_total=total,
        )

    def _read_resident(self) -> MemoryUse:
        sizes = resident_bytes()
        use = MemoryUse(peak=sizes.get("VmHWM") if self._has_peak else None, end=sizes.get("VmRSS"))
        if self._has_peak:
            reset_resident_peak()
        return use


class MeteredPhases:
    """The phases of this process, each measured as it ends."""

    def __init__(self, device: torch.device) -> None:
        self._meter, self._phases = MemoryMeter(device), MemoryPhases()

    def enter(self, phase: str | None) -> None:
        """`phase` begins, None: none does. Nothing where it is on."""
        if phase != self._phases.phase:
            self._phases.turn(phase, self._meter.read())

    def begin_step(self) -> None:
        """See `MemoryPhases`."""
        self._phases.begin_step()

    def report(self) -> ByPhase:
        """Of the phases that have ended in this step."""
        return self._phases.report()
