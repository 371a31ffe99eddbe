"""One vLLM engine: samples responses with their log-probs, and adopts new weights between generate calls.

Its parts: `engine_state` (what it may do now), `engine_process` (vLLM's processes), `engine_memory` (measured),
`sampling`, `weight_updates`, `sleeping` (turns on shared GPUs).
Invariants: installing weights waits for running `generate` calls to end and holds back new ones; no process outlives
`shutdown`.
"""

from collections.abc import Sequence
from pathlib import Path

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.records import Rollout, SampleRequest
from megarl.reshard.session import WeightEndpoint
from megarl.rollout.engine_memory import EngineMemory
from megarl.rollout.engine_process import EXIT_GRACE_S, EngineProcess
from megarl.rollout.engine_state import EngineState, State
from megarl.rollout.failures import EngineError
from megarl.rollout.sampling import Arrived, Sampler
from megarl.rollout.sleeping import Sleeping
from megarl.rollout.weight_updates import Adoption, WeightUpdates, worker_call_limit_s


class RolloutEngine:
    """See the module; every method but the constructor runs on one event loop."""

    def __init__(
        self,
        *,
        config: RolloutConfig,
        model: ModelConfig,
        index: int,
        stop_token_ids: tuple[int, ...],
        log_path: Path | None = None,
        shares_gpus: bool = False,
    ) -> None:
        """`index` numbers the engine among config.engines; vLLM's log goes to `log_path` (None: a temporary file).

        shares_gpus: it can sleep (cluster.colocate).
        """
        if not 0 <= index < config.engines:
            raise ValueError(f"engine index {index} is not in 0 .. {config.engines - 1} (rollout.engines)")
        self._state = EngineState(f"engine {index}")
        self._process = EngineProcess(
            config=config, model=model, state=self._state, log_path=log_path, shares_gpus=shares_gpus
        )
        self._sampler = Sampler(config, name=self._state.name, stop_token_ids=tuple(stop_token_ids))
        limit_s = worker_call_limit_s(config)
        self._memory = EngineMemory(self._process, call_limit_s=limit_s)
        self._updates = WeightUpdates(
            index=index, state=self._state, process=self._process, memory=self._memory, call_limit_s=limit_s
        )
        self._sleeping = Sleeping(state=self._state, process=self._process, memory=self._memory, call_limit_s=limit_s)

    @property
    def state(self) -> State:
        return self._state.now

    @property
    def policy_version(self) -> int:
        """Of the weights that it samples from."""
        return self._updates.version

    async def start(self) -> None:
        """Start vLLM's processes and load the checkpoint.

        Raises:
            ConfigError: rollout.vllm_overrides has a name that vLLM does not know or that megarl sets.
            EngineStartError: with the root cause and what to change; nothing is left running.
        """
        if self.state != "new":
            raise EngineError(f"{self._state.name} is {self.state}; start() runs once on a new engine")
        await self._process.start()
        await self._memory.enter("generate")

    async def shutdown(self, *, grace_s: float = EXIT_GRACE_S) -> None:
        """Stop vLLM and every process it started; those that have not ended after `grace_s` are killed. Idempotent."""
        await self._state.close()
        await self._process.end(grace_s=grace_s)

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived | None = None) -> list[Rollout]:
        """One response per request, in order; the same prompt and seed give the same tokens under the same weights.

        `arrived` is told of each as soon as it has come.

        Raises:
            ValueError: a prompt is empty or longer than rollout.max_prompt_tokens.
            EngineError: the engine is not running, or its process died (with the cause from its log), or no token has
                come for rollout.stall_timeout_s.
        """
        self._sampler.check_prompts(requests)
        async with self._state.sampling():
            self._memory.begin_step()
            work = self._sampler.sample(self._process.llm, requests, version=self.policy_version, arrived=arrived)
            return await self._process.alive(work, limit_s=None)

    async def check(self) -> None:
        """EngineError where it cannot go on: its processes died, or do not answer."""
        self._state.check_ready("go on")
        await self._updates.check()

    async def sleep(self) -> list[int] | None:
        """Give the GPUs' memory back once running generate calls have ended: weights and KV cache are gone.

        Returns the bytes in use afterwards on every worker's GPU, by whatever process; None on a CPU, where nothing is
        given back. EngineError where vLLM fails at it.
        """
        return await self._sleeping.sleep()

    async def wake_weights(self) -> None:
        """Memory for weights again, which the next publication fills. EngineError where vLLM fails at it."""
        await self._sleeping.wake_weights()

    async def wake_cache(self) -> None:
        """The KV cache again, after the publication: it samples. EngineError where vLLM fails at it."""
        await self._sleeping.wake_cache()

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """Connect every worker to the policy as index x tensor + tensor rank, while the policy's ranks connect too.

        Replaces an earlier connection.

        Raises:
            TransportError: a worker could not connect, with the reason; the engine is as it was.
        """
        await self._updates.connect(endpoint)

    async def disconnect(self) -> None:
        """End the session with the policy, which is about to end while the engine goes on: nothing of its memory, and
        no staging memory, is held until another one comes.

        Raises:
            TransportError: a worker could not; the engine is as it was.
        """
        await self._updates.disconnect()

    async def receive_weights(self, version: int) -> None:
        """Begin to receive `version` beside sampling; returns at once.

        Raises:
            TransportError: the connection ended with an earlier failure.
        """
        await self._updates.receive(version)

    async def adopt_weights(self, version: int) -> Adoption:
        """Install the version that `receive_weights` began to receive.

        Waits for running generate calls to end; later ones wait for the new weights. The prefix cache is emptied.

        Raises:
            TransportError: the version did not come whole; the engine samples on from the weights it has.
            WeightAdoptionError: installing failed. The engine holds a mixture of versions and refuses to sample.
        """
        return await self._updates.adopt(version)
