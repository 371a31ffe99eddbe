"""Doctor's check for what runs that were killed have left on this machine."""

from collections.abc import Iterator

from megarl.cli.findings import Finding
from megarl.runtime.leftovers import find_leftovers

_SHOWN = 5


def check_leftovers() -> Iterator[Finding]:
    """One finding; the next run removes all of it."""
    name, found = "killed runs", find_leftovers()
    if not found:
        yield Finding(name=name, level="ok", found="no process, shared memory or temporary file of megarl is left")
        return
    runs = sorted({leftover.run or "unknown" for leftover in found})
    shown = "; ".join(leftover.name for leftover in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    yield Finding(
        name=name,
        level="warning",
        found=f"left by {', '.join(runs)}: {shown}{more}",
        action="nothing: the next `megarl train` or `megarl sft` on this machine removes them",
    )
