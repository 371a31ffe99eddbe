"""One vLLM engine: samples responses with their log-probs, and adopts new weights between generate calls.

States: new -> (start) ready -> (adopt_weights) updating -> ready ... -> (shutdown) closed. A version is received beside
sampling; a version that did not come whole leaves the engine ready, with the weights it had. Only a failure while
weights are installed makes it broken, which only a new engine repairs. Invariants: all tokens of a rollout were sampled
under `policy_version`, because installing waits for running `generate` calls to end and holds back new ones, and vLLM's
own record of the version is compared per rollout; `behavior_logp` is the log-prob after temperature; no process
outlives `shutdown`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from megarl.config.base import ConfigError
from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.records import Rollout, SampleRequest, StopReason, as_floats, as_tokens
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.signals import TransportError
from megarl.rollout.arguments import build_engine_args, build_sampling_params
from megarl.rollout.engine_log import write_logging_config
from megarl.rollout.environment import set_engine_environment
from megarl.rollout.failures import (
    EngineError,
    EngineStartError,
    WeightAdoptionError,
    describe_failure,
    find_root_cause,
)
from megarl.rollout.processes import ChildProcesses
from megarl.rollout.progress import EngineProgress
from megarl.rollout.vllm_versions import label_weights, sampled_versions
from megarl.telemetry.leases import Lease

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
State = Literal["new", "ready", "updating", "broken", "closed"]

_EXIT_GRACE_S = 30.0
_POLL_S = 1.0
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
    ) -> None:
        """`index` numbers the engine among config.engines; vLLM's log goes to `log_path` (None: a temporary file)."""
        if not 0 <= index < config.engines:
            raise ValueError(f"engine index {index} is not in 0 .. {config.engines - 1} (rollout.engines)")
        self._config, self._model, self._index = config, model, index
        self._stop_token_ids = tuple(stop_token_ids)
        self._lease: Lease | None = None
        self._log_path = log_path
        self._llm: AsyncLLM | None = None
        self._processes: ChildProcesses | None = None
        self._progress: EngineProgress | None = None
        self._state: State = "new"
        self._reason = ""
        self._running = 0
        self._num_requests = 0
        self._receiving: int | None = None
        self._changed = asyncio.Condition()
        self.policy_version = 0

    @property
    def state(self) -> State:
        return self._state

    # start and end

    async def start(self) -> None:
        """Start vLLM's processes and load the checkpoint.

        Raises:
            ConfigError: rollout.vllm_overrides has a name that vLLM does not know or that megarl sets.
            EngineStartError: with the root cause and what to change; nothing is left running.
        """
        if self._state != "new":
            raise EngineError(f"engine {self._index} is {self._state}; start() runs once on a new engine")
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
        if self._state == "closed":  # shut down while it was building
            await self._abandon(building)
            raise EngineStartError(f"engine {self._index} was shut down while it started")
        assert self._llm is not None
        self._progress = EngineProgress(self._llm, self._processes, stall_timeout_s=self._config.stall_timeout_s)
        self._state = "ready"

    async def _await_built(self, building: "asyncio.Task[None]") -> None:
        """Wait for the build, noting vLLM's processes while they live: a failed start leaves no other trace of them."""
        assert self._processes is not None
        deadline = time.monotonic() + self._config.start_timeout_s
        while not building.done():
            if time.monotonic() > deadline:
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

    def _prepare_log(self) -> None:
        """vLLM's log goes to a file that failures are explained from."""
        self._lease = Lease.take("engine")
        if self._log_path is None:
            self._log_path = self._lease.path / "engine.log"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path.touch()
        path = self._lease.path / "logging.json"
        write_logging_config(path, log=self._log_path)
        set_engine_environment(
            tensor=self._config.tensor, start_timeout_s=self._config.start_timeout_s, logging_config=path
        )

    def _build(self) -> None:
        arguments = build_engine_args(self._config, self._model)
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(arguments)

    async def _abandon(self, building: "asyncio.Task[None]") -> None:
        """End a start that failed or took too long; with its processes gone, the building thread ends too."""
        self._state = "closed"
        await self._end_processes(grace_s=0.0)
        await asyncio.gather(building, return_exceptions=True)
        await self._stop_llm(grace_s=_EXIT_GRACE_S)

    def _start_failure_text(self, error: BaseException) -> str:
        where = f"engine {self._index} ({self._model.path}, tensor {self._config.tensor})"
        if isinstance(error, TimeoutError):
            last = (self._log_text().splitlines() or ["nothing"])[-1]
            return (
                f"{where} was not ready after rollout.start_timeout_s = {self._config.start_timeout_s:g} s; raise it, "
                f"or see what it waits for. The last line of its log: {last}"
            )
        return f"{where} did not start: {describe_failure(error, self._log_text())}"

    def _log_text(self) -> str:
        assert self._log_path is not None
        return self._log_path.read_text(errors="replace")

    async def shutdown(self, *, grace_s: float = _EXIT_GRACE_S) -> None:
        """Stop vLLM and every process it started; those that have not ended after `grace_s` are killed. Idempotent."""
        self._state = "closed"
        async with self._changed:
            self._changed.notify_all()
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

    # sampling

    async def generate(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """One response per request, in order; the same prompt and seed give the same tokens under the same weights.

        Raises:
            ValueError: a prompt is empty or longer than rollout.max_prompt_tokens.
            EngineError: the engine is not running, or its process died (with the cause from its log), or no token has
                come for rollout.stall_timeout_s.
        """
        for position, request in enumerate(requests):
            if not 0 < len(request.prompt) <= self._config.max_prompt_tokens:
                raise ValueError(
                    f"request {position} has a prompt of {len(request.prompt)} tokens; expected 1 .. "
                    f"{self._config.max_prompt_tokens} (rollout.max_prompt_tokens)"
                )
        async with self._sampling():
            return await self._alive(self._sample_all(requests), limit_s=None)

    @asynccontextmanager
    async def _sampling(self) -> AsyncIterator[None]:
        """Hold off adoptions, after waiting for one in progress."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._state != "updating")
            self._check_ready("sample")
            self._running += 1
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()

    async def _alive(self, work: Coroutine[Any, Any, T], *, limit_s: float | None) -> T:
        """Await `work`, but not for ever: vLLM does not wake those who wait on an engine whose process was killed or
        stopped. limit_s: None for sampling, which ends when tokens cease to come."""
        assert self._llm is not None
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
            if self._llm is None or not (self._llm.errored or self._state == "broken"):
                raise
            cause = find_root_cause(self._log_text()) or "no exception in its log: it was killed, or out of memory"
            self._break(f"its process died: {cause}")
            raise EngineError(f"engine {self._index} cannot go on: {self._reason}") from error
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
        self._break(reason)
        assert self._processes is not None
        await asyncio.to_thread(self._processes.end, 0.0)
        raise EngineError(reason)

    async def _sample_all(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        tasks = [asyncio.create_task(self._sample(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self, request: SampleRequest) -> Rollout:
        assert self._llm is not None
        self._num_requests += 1
        params = build_sampling_params(self._config, seed=request.seed, stop_token_ids=self._stop_token_ids)
        prompt: Any = {"prompt_token_ids": list(request.prompt)}
        output: Any = None
        async for latest in self._llm.generate(prompt, params, request_id=str(self._num_requests)):
            output = latest
        return self._rollout(request, output.outputs[0])

    def _rollout(self, request: SampleRequest, completion: Any) -> Rollout:
        reasons: dict[str, StopReason] = {"stop": "stop", "length": "length"}
        if completion.finish_reason not in reasons:
            raise EngineError(
                f"engine {self._index} ended a request with {completion.finish_reason!r}, not stop or length"
            )
        versions = sampled_versions(completion)
        expected = {_version_name(self.policy_version)}
        if versions - expected:
            raise EngineError(f"engine {self._index} sampled under weight versions {versions}, expected {expected}")
        tokens = completion.token_ids
        logps = [logprobs[token].logprob for token, logprobs in zip(tokens, completion.logprobs, strict=True)]
        return Rollout(
            prompt=as_tokens(request.prompt),
            response=as_tokens(tokens),
            behavior_logp=as_floats(logps),
            stop_reason=reasons[completion.finish_reason],
            policy_version=self.policy_version,
        )

    # weights

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """Connect every worker to the trainer as index x tensor + tensor rank, while the trainer's ranks connect too.

        Replaces an earlier connection.

        Raises:
            TransportError: a worker could not connect, with the reason; the engine is as it was.
        """
        self._check_ready("connect")
        await self._forget_version()
        info = endpoint.as_dict() | {"engine_index": self._index}
        await self._call_workers("init_weight_transfer_engine", init_info=info)

    async def receive_weights(self, version: int) -> None:
        """Begin to receive `version` beside sampling; returns at once.

        Raises:
            TransportError: the connection ended with an earlier failure.
        """
        self._check_ready("receive weights")
        await self._forget_version()
        await self._call_workers("start_weight_update")
        self._receiving = version

    async def _forget_version(self) -> None:
        """End what `receive_weights` began and a failed publication left open in vLLM; the weights stay."""
        if self._receiving is not None:
            version, self._receiving = self._receiving, None
            with suppress(TransportError):
                await self._await_version(version)

    async def adopt_weights(self, version: int) -> Adoption:
        """Install the version that `receive_weights` began to receive.

        Waits for running generate calls to end; later ones wait for the new weights. The prefix cache is emptied.

        Raises:
            TransportError: the version did not come whole; the engine samples on from the weights it has.
            WeightAdoptionError: installing failed. The engine holds a mixture of versions and refuses to sample.
        """
        self._check_ready("adopt weights")
        if self._receiving != version:
            raise EngineError(f"engine {self._index} receives weights version {self._receiving}, not {version}")
        self._receiving = None
        await self._await_version(version)
        async with self._changed:
            await self._changed.wait_for(lambda: self._state != "updating")
            self._check_ready("adopt weights")
            self._state = "updating"
        try:
            adoption = await self._install(version)
            self.policy_version = version
            if self._state == "updating":
                self._state = "ready"
        except BaseException as error:
            self._break(f"adopting weights version {version} failed: {str(error) or type(error).__name__}")
            if isinstance(error, Exception):
                raise WeightAdoptionError(f"engine {self._index}: {self._reason}") from error
            raise
        finally:
            async with self._changed:
                self._changed.notify_all()
        return adoption

    async def _await_version(self, version: int) -> None:
        """Return when every worker has the version; TransportError when one has not, and none will install it."""
        await self._call_workers("update_weights", update_info={"version": version})

    async def _call_workers(self, method: str, **arguments: Any) -> None:
        """Call a method of every worker; TransportError with what the first of those says that could not.

        Raises EngineError when a worker does not answer at all: vLLM cannot go on without it.
        """
        assert self._llm is not None
        try:
            answers = await self._alive(
                self._llm.collective_rpc("megarl_call", args=(method, arguments)),
                limit_s=worker_call_limit_s(self._config),
            )
        except EngineError:
            raise
        except Exception as error:
            cause = find_root_cause(self._log_text()) or str(error)
            self._break(f"a worker did not answer {method}: {cause}")
            raise EngineError(f"engine {self._index} cannot go on: {self._reason}") from error
        for worker, answer in enumerate(answers):
            if answer is not None:
                raise TransportError(f"engine {self._index} worker {worker}: {answer}")

    async def _install(self, version: int) -> Adoption:
        assert self._llm is not None
        started = time.perf_counter()
        async with self._changed:
            await self._changed.wait_for(lambda: self._running == 0)
        drained = time.perf_counter()
        await self._call_workers("finish_weight_update")
        limit_s = worker_call_limit_s(self._config)
        await self._alive(label_weights(self._llm, _version_name(version)), limit_s=limit_s)
        installed = time.perf_counter()
        await self._alive(self._empty_prefix_cache(), limit_s=limit_s)
        resumed = time.perf_counter()
        return Adoption(drain_s=drained - started, install_s=installed - drained, resume_s=resumed - installed)

    async def _empty_prefix_cache(self) -> None:
        assert self._llm is not None
        if not await self._llm.reset_prefix_cache():
            raise EngineError("the prefix cache could not be emptied: requests still hold blocks of it")

    def _check_ready(self, verb: str) -> None:
        if self._state != "ready":
            reason = f" ({self._reason})" if self._reason else ""
            raise EngineError(f"engine {self._index} cannot {verb}: it is {self._state}{reason}")

    def _break(self, reason: str) -> None:
        if self._state != "closed":
            self._state = "broken"
        self._reason = self._reason or reason


def worker_call_limit_s(config: RolloutConfig) -> float:
    """After so many seconds a call to an engine's workers has failed: longer than it can wait for peers."""
    return config.stall_timeout_s + _PEER_WAITS * config.publish.timeout_s


def _version_name(version: int) -> str:
    """How vLLM labels the version; its own label for weights it loaded itself is "default"."""
    return str(version) if version else "default"
