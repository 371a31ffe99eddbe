"""Whether a vLLM engine goes on: tokens come while it has requests, and none of its processes is stopped."""

import time
from typing import TYPE_CHECKING

from megarl.rollout.processes import ChildProcesses

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_LOOK_S = 1.0


class EngineProgress:
    """Looks, at most once a second however many ask, and counts the seconds without progress.

    Seconds in which this process did not look, because it was stopped itself or had nothing to wait for, do not count.
    """

    def __init__(self, llm: "AsyncLLM", processes: ChildProcesses, *, stall_timeout_s: float) -> None:
        self._llm, self._processes, self._stall_timeout_s = llm, processes, stall_timeout_s
        self._looked_s = time.monotonic()
        self._seen = (0, 0)
        self._silent_s = 0.0
        self._stopped: dict[str, float] = {}

    def why_stuck(self) -> str | None:
        """For a person; None while the engine goes on, or may yet."""
        self._look()
        if stopped := [name for name, seconds in self._stopped.items() if seconds >= self._stall_timeout_s]:
            return f"{', '.join(stopped)} of it has been stopped (by SIGSTOP) for {self._stall_timeout_s:g} s {_FIELD}"
        if self._silent_s >= self._stall_timeout_s:
            return (
                f"it sampled no token for {self._stall_timeout_s:g} s {_FIELD} with {self._seen[0]} requests waiting; "
                "raise that if one step of vLLM takes so long"
            )
        return None

    def _look(self) -> None:
        now = time.monotonic()
        if (since_s := now - self._looked_s) < _LOOK_S:
            return
        self._looked_s, passed_s = now, min(since_s, 2 * _LOOK_S)
        seen = self._count()
        idle = not seen[0] or seen != self._seen
        self._silent_s, self._seen = 0.0 if idle else self._silent_s + passed_s, seen
        self._stopped = {name: self._stopped.get(name, 0.0) + passed_s for name in self._processes.find_stopped()}

    def _count(self) -> tuple[int, int]:
        """(requests under way, tokens sampled for them): either changes when the engine does anything."""
        states = list(self._llm.output_processor.request_states.values())
        return len(states), sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)


_FIELD = "(rollout.stall_timeout_s)"
