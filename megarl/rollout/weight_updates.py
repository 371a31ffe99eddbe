"""Versions of the weights on their way into an engine.

A version is received beside sampling; one that did not come whole leaves the engine ready, with the weights it had.
Only a failure while weights are installed makes it broken, which only a new engine repairs.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megarl.config.rollout import RolloutConfig
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.signals import TransportError
from megarl.rollout.engine_memory import EngineMemory
from megarl.rollout.engine_process import EngineProcess
from megarl.rollout.engine_state import EngineState, Memory
from megarl.rollout.failures import EngineError, WeightAdoptionError, find_root_cause
from megarl.rollout.vllm_versions import label_weights, weights_label
from megarl.telemetry.memory_phases import ByPhase

_FILLABLE: Mapping[Memory, Memory] = {"awake": "awake", "unfilled": "awake", "blank": "loaded", "loaded": "loaded"}
"""What may receive a version -> what it is when it has installed it."""
_PEER_WAITS = 5
"""Waits for peers in a row, of publish.timeout_s each, that one call to the workers may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """Seconds of an engine's change of weights; sampling rested during all three."""

    drain_s: float
    """Until running requests had ended."""
    install_s: float
    """From staging memory into the model."""
    resume_s: float
    """Emptying the prefix cache."""
    memory: tuple[ByPhase, ...] = ()
    """By worker, what it used in the phases of the step that ends with this."""


def worker_call_limit_s(config: RolloutConfig) -> float:
    """After so many seconds a call to an engine's workers has failed: longer than it can wait for peers."""
    return config.stall_timeout_s + _PEER_WAITS * config.publish.timeout_s


class WeightUpdates:
    """One engine's side of all publications."""

    def __init__(
        self, *, index: int, state: EngineState, process: EngineProcess, memory: EngineMemory, call_limit_s: float
    ) -> None:
        """index: the engine's number; call_limit_s: `worker_call_limit_s`."""
        self._index, self._state, self._process, self._memory = index, state, process, memory
        self._call_limit_s = call_limit_s
        self._receiving: int | None = None
        self.version = 0
        """Of the weights that the engine samples from."""

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """See RolloutEngine."""
        self._state.check_ready("connect")
        self._state.check_memory("connect", *_FILLABLE)
        await self._forget_version()
        info = endpoint.as_dict() | {"engine_index": self._index}
        await self._call_workers("init_weight_transfer_engine", init_info=info)

    async def check(self) -> None:
        """Every worker answers, or EngineError."""
        await self._call_workers("check_health")

    async def disconnect(self) -> None:
        """See RolloutEngine."""
        self._state.check_ready("disconnect")
        await self._forget_version()
        await self._call_workers("megarl_disconnect")

    async def receive(self, version: int) -> None:
        """Begin to receive `version` beside sampling. TransportError: the connection has ended."""
        self._state.check_ready("receive weights")
        self._state.check_memory("receive weights", *_FILLABLE)
        await self._forget_version()
        await self._memory.enter("publish")
        await self._call_workers("start_weight_update")
        self._receiving = version

    async def adopt(self, version: int) -> Adoption:
        """Install what `receive` began to receive; see RolloutEngine."""
        self._state.check_ready("adopt weights")
        self._state.check_memory("adopt weights", *_FILLABLE)
        if self._receiving != version:
            raise EngineError(f"{self._state.name} receives weights version {self._receiving}, not {version}")
        self._receiving = None
        await self._await_version(version)
        async with self._state.updating():
            try:
                adoption = await self._install(version)
            except BaseException as error:
                self._state.fail(f"adopting weights version {version} failed: {str(error) or type(error).__name__}")
                if isinstance(error, Exception):
                    raise WeightAdoptionError(f"{self._state.name}: {self._state.reason}") from error
                raise
            self.version = version
            self._state.memory = _FILLABLE[self._state.memory]
        return adoption

    async def _forget_version(self) -> None:
        """End what `receive` began and a failed publication left open in vLLM; the weights stay."""
        if self._receiving is not None:
            version, self._receiving = self._receiving, None
            with suppress(TransportError):
                await self._await_version(version)

    async def _await_version(self, version: int) -> None:
        """Return when every worker has the version; TransportError when one has not, and none will install it."""
        await self._call_workers("update_weights", update_info={"version": version})

    async def _install(self, version: int) -> Adoption:
        started = time.perf_counter()
        await self._state.await_idle()
        drained = time.perf_counter()
        await self._call_workers("finish_weight_update")
        label = label_weights(self._process.llm, weights_label(version))
        await self._process.alive(label, limit_s=self._call_limit_s)
        installed = time.perf_counter()
        await self._process.alive(self._empty_prefix_cache(), limit_s=self._call_limit_s)
        resumed = time.perf_counter()
        await self._memory.enter("generate")
        return Adoption(
            drain_s=drained - started,
            install_s=installed - drained,
            resume_s=resumed - installed,
            memory=self._memory.report(),
        )

    async def _empty_prefix_cache(self) -> None:
        if not await self._process.llm.reset_prefix_cache():
            raise EngineError("the prefix cache could not be emptied: requests still hold blocks of it")

    async def _call_workers(self, method: str, **arguments: Any) -> None:
        """Call a method of every worker; TransportError with what the first of those says that could not.

        Raises EngineError when a worker does not answer at all: vLLM cannot go on without it.
        """
        call = self._process.llm.collective_rpc("megarl_call", args=(method, arguments))
        try:
            answers = await self._process.alive(call, limit_s=self._call_limit_s)
        except EngineError:
            raise
        except Exception as error:
            cause = find_root_cause(self._process.log_text()) or str(error)
            self._state.fail(f"a worker did not answer {method}: {cause}")
            raise EngineError(f"{self._state.name} cannot go on: {self._state.reason}") from error
        for worker, answer in enumerate(answers):
            if answer is not None:
                raise TransportError(f"{self._state.name} worker {worker}: {answer}")
