"""An engine's part in turns on shared GPUs: its memory given back while the policy trains, and taken again.

Asleep (vLLM's level 2) neither weights nor KV cache are on the GPU, nor on the host: the weights of the next version
come from the policy. They have their memory back first, for the publication, and the cache has when that is over.

vLLM's CPU build has no sleep mode: there the states are the same, and nothing moves.
"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from megarl.rollout.engine_memory import EngineMemory
from megarl.rollout.engine_process import EngineProcess
from megarl.rollout.engine_state import EngineState, Memory
from megarl.rollout.failures import EngineError

_log = logging.getLogger(__name__)
_LEVEL = 2


class Sleeping:
    """Of one engine."""

    def __init__(
        self, *, state: EngineState, process: EngineProcess, memory: EngineMemory, call_limit_s: float
    ) -> None:
        """call_limit_s: after so long vLLM has failed to give memory back, or to take it."""
        self._state, self._process, self._memory, self._call_limit_s = state, process, memory, call_limit_s

    async def sleep(self) -> list[int] | None:
        """Wait for running generate calls, then give the memory back; the weights are lost. Where it sleeps already it
        sleeps on. Returns the bytes in use afterwards, by whatever process, on every worker's GPU; None on a CPU."""
        self._state.check_ready("sleep")
        if self._state.memory != "asleep":
            await self._change("asleep", lambda: self._process.llm.sleep(_LEVEL))
        in_use = [use.gpu_in_use for use in await self._memory.enter("sleep")]
        return [size for size in in_use if size is not None] if self._process.sleeps else None

    async def wake_weights(self) -> None:
        """Memory for the weights again, with nothing in it. Nothing where it has it."""
        self._state.check_ready("wake")
        if self._state.memory == "asleep":
            await self._change("blank", lambda: self._process.llm.wake_up(["weights"]))
            await self._memory.enter("wake")

    async def wake_cache(self) -> None:
        """The KV cache again: it may sample. RuntimeError where it has not adopted weights since it slept."""
        self._state.check_ready("wake")
        if self._state.memory != "awake":
            self._state.check_memory("sample again", "loaded")
            await self._change("awake", lambda: self._process.llm.wake_up(["kv_cache"]))

    async def _change(self, memory: Memory, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """EngineError, and a broken engine, where vLLM fails at it: nobody knows what it holds then."""
        async with self._state.updating("sleep" if memory == "asleep" else "wake"):
            await self._state.await_idle()
            try:
                if memory != "awake":  # else its phase goes on
                    await self._memory.enter(None)
                if self._process.sleeps:
                    await self._process.alive(work(), limit_s=self._call_limit_s)
            except BaseException as error:
                self._state.fail(f"its memory did not become {memory}: {str(error) or type(error).__name__}")
                if isinstance(error, Exception):
                    raise EngineError(f"{self._state.name}: {self._state.reason}") from error
                raise
            self._state.memory = memory
