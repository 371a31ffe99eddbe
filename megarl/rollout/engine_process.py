"""vLLM's processes for one engine: their start, their end, and waiting for what they do without waiting for ever.

Invariant: no process, and no file of theirs in memory, outlives `end` or a failed `start`.
"""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megarl.config.base import ConfigError
from megarl.config.cluster import find_allocator_problem
from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.rollout.arguments import build_engine_args
from megarl.rollout.engine_log import write_logging_config
from megarl.rollout.engine_state import EngineState
from megarl.rollout.environment import set_engine_environment
from megarl.rollout.failures import EngineError, EngineStartError, describe_failure, find_root_cause
from megarl.rollout.processes import ChildProcesses
from megarl.rollout.progress import EngineProgress
from megarl.telemetry.leases import Lease
from megarl.telemetry.stacks import all_stacks, write_stacks

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

EXIT_GRACE_S = 30.0
_POLL_S = 1.0

_log = logging.getLogger(__name__)


class EngineProcess:
    """An `AsyncLLM`, the processes that it started and their log. Breaks `state` when they cannot go on."""

    def __init__(
        self,
        *,
        config: RolloutConfig,
        model: ModelConfig,
        state: EngineState,
        log_path: Path | None,
        shares_gpus: bool = False,
    ) -> None:
        """vLLM's log goes to `log_path` (None: a temporary file). shares_gpus: it must be able to sleep."""
        self._shares_gpus = shares_gpus
        self.sleeps = False
        """Whether it can; known once it has started."""
        self._config, self._model, self._state = config, model, state
        self._log_path = log_path
        self._keeps_log = log_path is not None
        self._log_start = 0
        """Where in its log this engine begins: before that, an earlier one speaks, in whose place it is."""
        self._stacks = ""
        """Where they are, of a start that took too long, for the end of a message."""
        self._lease: Lease | None = None
        self._llm: AsyncLLM | None = None
        self._processes: ChildProcesses | None = None
        self._progress: EngineProgress | None = None

    @property
    def llm(self) -> "AsyncLLM":
        """vLLM's own engine; between `start` and `end`."""
        assert self._llm is not None
        return self._llm

    def log_text(self) -> str:
        """Everything that vLLM has logged for this engine."""
        assert self._log_path is not None
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    # start

    async def start(self) -> None:
        """Start vLLM's processes and load the checkpoint.

        Raises:
            ConfigError: rollout.vllm_overrides has a name that vLLM does not know or that megarl sets, or the
                environment keeps an engine from sleeping that has to.
            EngineStartError: with the root cause and what to change; nothing is left running.
        """
        if self._shares_gpus and (problem := find_allocator_problem(os.environ)):
            raise ConfigError(problem)
        self._prepare_log()
        self._processes = ChildProcesses()
        building = asyncio.create_task(asyncio.to_thread(self._build))
        try:
            await self._await_built(building)
        except ConfigError:
            self._close_scratch()
            raise
        except BaseException as error:
            await self._abandon(building)
            text = self._start_failure_text(error)
            self._close_scratch()
            if isinstance(error, Exception):
                raise EngineStartError(text) from error
            raise
        if self._state.now == "closed":  # shut down while it was building
            await self._abandon(building)
            raise EngineStartError(f"{self._state.name} was shut down while it started")
        self._progress = EngineProgress(self.llm, self._processes, stall_timeout_s=self._config.stall_timeout_s)
        if self._config.starts_without_weights:
            self._state.memory = "unfilled"
        self._state.open()

    def _prepare_log(self) -> None:
        """vLLM's log goes to a file that failures are explained from."""
        self._lease = Lease.take("engine")
        if self._log_path is None:
            self._log_path = self._lease.path / "engine.log"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path.touch()
        self._log_start = self._log_path.stat().st_size
        path = self._lease.path / "logging.json"
        write_logging_config(path, log=self._log_path)
        set_engine_environment(
            tensor=self._config.tensor, start_timeout_s=self._config.start_timeout_s, logging_config=path
        )

    def _build(self) -> None:
        arguments = build_engine_args(self._config, self._model, sleeps=self._shares_gpus)
        self.sleeps = arguments.enable_sleep_mode
        if self._shares_gpus and not self.sleeps:
            _log.warning(
                "%s: vLLM's CPU build has no sleep mode, so this engine keeps its memory while the policy trains "
                "(cluster.colocate); everything else of the turns is the same",
                self._state.name,
            )
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(arguments)

    async def _await_built(self, building: "asyncio.Task[None]") -> None:
        """Wait for the build, noting vLLM's processes while they live: a failed start leaves no other trace of them."""
        deadline = time.monotonic() + self._config.start_timeout_s
        while not building.done():
            if time.monotonic() > deadline:
                self._stacks = await self._write_stacks()
                raise TimeoutError
            await asyncio.wait([building], timeout=_POLL_S)
            await asyncio.to_thread(self._find_processes)
        await building

    def _find_processes(self) -> None:
        """Note vLLM's processes and their shared files, the files also where a kill of this process leaves them."""
        assert self._processes is not None
        assert self._lease is not None
        before = self._processes.files
        self._processes.find()
        if self._processes.files != before:
            self._lease.note(self._processes.files)

    async def _abandon(self, building: "asyncio.Task[None]") -> None:
        """End a start that failed or took too long; with its processes gone, the building thread ends too."""
        await self._state.close()
        await self._end_processes(grace_s=0.0)
        await asyncio.gather(building, return_exceptions=True)
        await self._stop_llm(grace_s=EXIT_GRACE_S)

    def _start_failure_text(self, error: BaseException) -> str:
        where = f"{self._state.name} ({self._model.path}, tensor {self._config.tensor})"
        if isinstance(error, TimeoutError):
            last = (self.log_text().splitlines() or ["nothing"])[-1]
            return (
                f"{where} was not ready after rollout.start_timeout_s = {self._config.start_timeout_s:g} s; raise it, "
                f"or see what it waits for. The last line of its log: {last}{self._stacks}"
            )
        return f"{where} did not start: {describe_failure(error, self.log_text())}"

    # work

    async def alive(self, work: Coroutine[Any, Any, T], *, limit_s: float | None) -> T:
        """Await `work`, but not for ever: vLLM does not wake those who wait on an engine whose process was killed or
        stopped.

        limit_s: None for sampling, which ends when tokens cease to come. Raises EngineError, with the cause, where the
        engine cannot go on; else what `work` raises.
        """
        task = asyncio.create_task(work)
        started_s = time.monotonic()
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_POLL_S)
                if task.done():
                    break
                if self._llm is None or self._llm.errored:
                    raise EngineError("it was shut down" if self._llm is None else "its process died")
                if reason := self._why_stuck(time.monotonic() - started_s, limit_s=limit_s):
                    await self._kill(reason)
            return await task
        except Exception as error:
            if self._llm is None or not (self._llm.errored or self._state.now == "broken"):
                raise
            cause = find_root_cause(self.log_text()) or "no exception in its log: it was killed, or out of memory"
            self._state.fail(f"its process died: {cause}")
            raise EngineError(f"{self._state.name} cannot go on: {self._state.reason}") from error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _why_stuck(self, waited_s: float, *, limit_s: float | None) -> str | None:
        assert self._progress is not None
        if limit_s is not None and waited_s > limit_s:
            return f"its workers have not answered for {limit_s:g} s"
        return self._progress.why_stuck()

    async def _kill(self, reason: str) -> None:
        """vLLM does not go on: end its processes, stopped ones too. EngineError, always."""
        reason += await self._write_stacks()
        self._state.fail(reason)
        assert self._processes is not None
        await asyncio.to_thread(self._processes.end, 0.0)
        raise EngineError(reason)

    async def _write_stacks(self) -> str:
        """Of this process and vLLM's, while they live, beside the log; for the end of a message."""
        text = await asyncio.to_thread(all_stacks, [asyncio.get_running_loop()])
        if self._keeps_log:
            assert self._log_path is not None
            try:
                return f". Stacks of its processes: {write_stacks(self._log_path.parent, text, of=self._log_path.stem)}"
            except OSError as error:
                _log.warning("the stacks of the engine's processes are not written: %s", error)
        _log.error("stacks of the engine's processes:\n%s", text)
        return ""

    # end

    async def end(self, *, grace_s: float) -> None:
        """Stop vLLM and every process it started; those that have not ended after `grace_s` are killed. Idempotent."""
        await self._stop_llm(grace_s=grace_s)
        if self._processes is not None:
            self._processes.remove_semaphores()
        self._close_scratch()

    async def _stop_llm(self, *, grace_s: float) -> None:
        if self._processes is not None:
            await asyncio.to_thread(self._processes.find)
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # else it reports the engine it reads from as dead
            await asyncio.to_thread(llm.shutdown, grace_s)
        await self._end_processes(grace_s=grace_s)

    async def _end_processes(self, *, grace_s: float) -> None:
        if self._processes is not None:
            await asyncio.to_thread(self._processes.find)
            await asyncio.to_thread(self._processes.end, grace_s)

    def _close_scratch(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None
