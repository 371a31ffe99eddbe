"""What this process has in the machine's memory, mapped pages included, as proc(5) tells it."""

from pathlib import Path

_STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""To `clear_refs`: VmHWM becomes what is resident now."""


def resident_bytes() -> dict[str, int]:
    """VmRSS, now, and VmHWM, the most, which unlike getrusage's begins with this program; empty where there is no such
    file."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    return {name.removesuffix(":"): int(kib) * 1024 for name, kib, *_ in fields}


def peak_resident_bytes() -> int:
    """The most so far. OSError where this is not Linux."""
    sizes = resident_bytes()
    if "VmHWM" not in sizes:
        raise OSError(f"{_STATUS} has no VmHWM; is this Linux?")
    return sizes["VmHWM"]


def reset_resident_peak() -> bool:
    """Whether this process may: VmHWM counts from now."""
    try:
        CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True
