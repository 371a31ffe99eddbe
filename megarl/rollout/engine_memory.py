"""What an engine's workers use of their memory, phase by phase (`telemetry.memory_phases`).

A phase ends by one call to the workers, each of which measures itself. Of an engine that can sleep torch's allocator
counts what it has given back too, so while it is not whole only what its GPUs have in use is told.
"""

from megarl.rollout.engine_process import EngineProcess
from megarl.telemetry.memory_phases import ByPhase, MemoryPhases, MemoryUse

_WHOLE = "generate"
"""The phase in which an engine has all of its memory."""


class EngineMemory:
    """Of one engine."""

    def __init__(self, process: EngineProcess, *, call_limit_s: float) -> None:
        """call_limit_s: after so long the workers have failed to answer."""
        self._process, self._call_limit_s = process, call_limit_s
        self._phases: list[MemoryPhases] = []
        """By worker."""

    def begin_step(self) -> None:
        """It samples: what was reported is of the step before."""
        for phases in self._phases:
            phases.begin_step()

    async def enter(self, phase: str | None) -> list[MemoryUse]:
        """`phase` begins, None: none does. By worker, what it used since the last call. EngineError where it cannot
        answer."""
        asked = self._process.llm.collective_rpc("megarl_memory")
        answers = await self._process.alive(asked, limit_s=self._call_limit_s)
        uses = [MemoryUse(**answer) for answer in answers]
        if not self._phases:
            self._phases = [MemoryPhases() for _ in uses]
        for phases, use in zip(self._phases, uses, strict=True):
            partial = self._process.sleeps and phases.phase != _WHOLE
            phases.turn(phase, use.of_gpu() if partial else use)
        return uses

    def report(self) -> tuple[ByPhase, ...]:
        """By worker, of the phases that have ended in this step."""
        return tuple(phases.report() for phases in self._phases)
