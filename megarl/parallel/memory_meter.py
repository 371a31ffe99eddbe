"""What this process uses of the memory in which it computes: of its GPU, or of the machine where there is none.

Invariant: a reading is of the time since the one before, whose end it begins at; it waits for nothing on the device.
"""

import logging
from pathlib import Path

import torch

from megarl.telemetry.memory_phases import ByPhase, MemoryPhases, MemoryUse

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""To `clear_refs`: VmHWM becomes what is resident now (proc(5))."""

_log = logging.getLogger(__name__)


class MemoryMeter:
    """Of one process, which must be alone in reading torch's and the kernel's peaks of itself."""

    def __init__(self, device: torch.device) -> None:
        """device: where the process computes."""
        self._device = device
        self._has_peak = device.type == "cuda" or _reset_resident_peak()
        if not self._has_peak:
            _log.info("%s cannot be written: memory is logged as it is at the ends of phases, without peaks", _CLEAR)

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
        sizes = _resident_bytes()
        use = MemoryUse(peak=sizes.get("VmHWM") if self._has_peak else None, end=sizes.get("VmRSS"))
        if self._has_peak:
            _reset_resident_peak()
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


def _resident_bytes() -> dict[str, int]:
    """VmRSS and VmHWM; empty where there is no such file."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    return {name.removesuffix(":"): int(kib) * 1024 for name, kib, *_ in fields}


def _reset_resident_peak() -> bool:
    """Whether this process may."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True
