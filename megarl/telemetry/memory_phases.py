"""A process's memory by the phases of a step: who measures hands in what was used since the last time, here it becomes
the phase's. What was reported is kept until the next step begins: a publication that is repeated reports it again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megarl.telemetry.metrics import Metrics, Values, declared, merge
from megarl.telemetry.names import memory_name

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Of one process, in bytes, since it was measured before. None: there is no such number."""

    peak: int | None = None
    """Most at once. CPU: of the resident set; CUDA: that torch's allocator has reserved."""
    end: int | None = None
    """The same now."""
    tensors: int | None = None
    """CUDA: most at once of the tensors in that allocator."""
    gpu_in_use: int | None = None
    """CUDA: now on the process's GPU, by whatever process."""
    gpu_peak: int | None = None
    """CUDA: most at once there, as far as this process made it: in use now, and what it had reserved more."""
    gpu_total: int | None = None
    """CUDA: that the GPU has."""

    def with_later(self, later: "MemoryUse") -> "MemoryUse":
        """Of both stretches together."""
        return MemoryUse(
            peak=_largest(self.peak, later.peak),
            end=later.end,
            tensors=_largest(self.tensors, later.tensors),
            gpu_in_use=later.gpu_in_use,
            gpu_peak=_largest(self.gpu_peak, later.gpu_peak),
            gpu_total=later.gpu_total,
        )

    def of_gpu(self) -> "MemoryUse":
        """Without what the process's allocator says."""
        return MemoryUse(gpu_in_use=self.gpu_in_use, gpu_peak=self.gpu_peak, gpu_total=self.gpu_total)


ByPhase = Mapping[str, MemoryUse]
"""What a process used in each phase of a step."""


class MemoryPhases:
    """Which phase it is, and what was used in those of the step so far."""

    def __init__(self) -> None:
        self.phase: str | None = None
        """None: what is used now is of no phase."""
        self._uses: dict[str, MemoryUse] = {}
        self._reported = False

    def begin_step(self) -> None:
        """What was reported is of the step before. Nothing where nothing was reported since the last call."""
        if self._reported:
            self._uses, self._reported = {}, False

    def turn(self, phase: str | None, use: MemoryUse) -> None:
        """`use`, since the last call, is of the phase that ends; now `phase` begins."""
        if self.phase is not None:
            before = self._uses.get(self.phase)
            self._uses[self.phase] = use if before is None else before.with_later(use)
        self.phase = phase

    def report(self) -> dict[str, MemoryUse]:
        """Of the phases that have ended in this step."""
        self._reported = True
        return dict(self._uses)


def memory_metrics(role: str, processes: Iterable[ByPhase]) -> Metrics:
    """Of the processes of a role ("policy", "engine"), whatever there is of the names that are declared."""
    return merge(
        *(_of_phase(role, phase, use) for by_phase in processes for phase, use in by_phase.items()),
    )


def _of_phase(role: str, phase: str, use: MemoryUse) -> Metrics:
    kinds = {"max": use.peak, "end": use.end, "tensors_max": use.tensors, "gpu_max": use.gpu_peak}
    values: dict[str, Values] = {
        memory_name(role, phase, kind): size / GIB for kind, size in kinds.items() if size is not None
    }
    if use.gpu_total is not None:
        values["memory/gpu_gib"] = use.gpu_total / GIB
    return declared(values)


def _largest(*sizes: int | None) -> int | None:
    return max((size for size in sizes if size is not None), default=None)
