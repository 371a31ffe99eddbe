"""An engine gives its memory back and takes it again, in this order and no other; vLLM itself is a stand-in here, whose
calls are compared with the real signatures."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.abstract import SLEEP_TAGS

from megarl.config.base import ConfigError
from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.reshard.signals import TransportError
from megarl.rollout.arguments import build_engine_args, check_vllm_overrides
from megarl.rollout.engine_memory import EngineMemory
from megarl.rollout.engine_process import EngineProcess
from megarl.rollout.engine_state import EngineState
from megarl.rollout.failures import EngineError, WeightAdoptionError
from megarl.rollout.sleeping import Sleeping
from megarl.rollout.weight_updates import Adoption, WeightUpdates
from megarl.rollout.worker_extension import WorkerExtension
from megarl.telemetry.memory_phases import MemoryUse

USES = [MemoryUse(peak=3, end=2, gpu_in_use=size, gpu_peak=size + 1, gpu_total=99) for size in (5, 7)]
"""What two workers measure."""


class Llm:
    """vLLM's engine: notes what is asked of it, as the real one would take it."""

    def __init__(self, **faults: Exception) -> None:
        self.calls: list[str] = []
        self._faults = faults

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        signature = inspect.signature(getattr(AsyncLLM, name))

        async def call(*arguments: Any, **named: Any) -> Any:
            bound = signature.bind(self, *arguments, **named).arguments
            self.calls.append(" ".join([name, *(str(value) for key, value in bound.items() if key != "self")]))
            if name in self._faults:
                raise self._faults[name]
            return {"collective_rpc": list(map(asdict, USES)), "reset_prefix_cache": True}.get(name)

        return call


class Process:
    """Stands for `EngineProcess`."""

    def __init__(self, llm: Llm, *, sleeps: bool) -> None:
        self.llm, self.sleeps = llm, sleeps

    async def alive(self, work: Coroutine[Any, Any, Any], *, limit_s: float | None) -> Any:
        assert limit_s == 9.0
        return await work


class Engine:
    """The parts of an engine that share its state."""

    def __init__(self, *, sleeps: bool = True, **faults: Exception) -> None:
        self.llm, self.state = Llm(**faults), EngineState("engine 0")
        self.state.open()
        process: Any = Process(self.llm, sleeps=sleeps)
        self.memory = EngineMemory(process, call_limit_s=9.0)
        common: Any = {"state": self.state, "process": process, "memory": self.memory, "call_limit_s": 9.0}
        self.sleeping, self.updates = Sleeping(**common), WeightUpdates(index=0, **common)

    async def sample(self) -> None:
        async with self.state.sampling():
            pass

    async def adopt(self, version: int) -> Adoption:
        """As when the version has come whole."""
        self.updates._call_workers = _answered  # type: ignore[method-assign]
        await self.updates.receive(version)
        return await self.updates.adopt(version)


async def _answered(method: str, **arguments: Any) -> None: ...


async def _refused(method: str, **arguments: Any) -> None:
    raise TransportError("engine 0 worker 0: the connection has ended")


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def test_one_that_was_started_without_weights_samples_only_what_it_adopted() -> None:
    """Also where a publication failed, and where it has slept meanwhile."""

    async def story() -> None:
        engine = Engine()
        engine.state.memory = "unfilled"
        with pytest.raises(RuntimeError, match=r"^engine 0 cannot sample: its memory is unfilled, not awake$"):
            await engine.sample()
        engine.updates._call_workers = _refused  # type: ignore[method-assign]
        with pytest.raises(TransportError):
            await engine.updates.receive(1)
        assert engine.state.memory == "unfilled"
        await engine.adopt(0)
        await engine.sample()
        assert engine.state.memory == "awake"
        sleeper = Engine()
        sleeper.state.memory = "unfilled"
        await sleeper.sleeping.sleep()
        await sleeper.sleeping.wake_weights()
        await sleeper.adopt(0)
        await sleeper.sleeping.wake_cache()
        await sleeper.sample()

    run(story())


@pytest.mark.parametrize("sleeps", [True, False])
def test_the_turn_of_an_engine(sleeps: bool) -> None:
    """Without vLLM's sleep mode the states are the same, and vLLM is asked for nothing."""

    async def story() -> None:
        engine = Engine(sleeps=sleeps)
        for version in (1, 2):
            await engine.sample()
            assert await engine.sleeping.sleep() == ([5, 7] if sleeps else None)
            assert await engine.sleeping.sleep() == ([5, 7] if sleeps else None), "it sleeps on, and is measured"
            assert engine.state.memory == "asleep"
            await engine.sleeping.wake_weights()
            await engine.sleeping.wake_weights()
            assert engine.state.memory == "blank"
            await engine.adopt(version)
            assert engine.state.memory == "loaded"
            await engine.sleeping.wake_cache()
            await engine.sleeping.wake_cache()
            await engine.sample()
        asked = [call for call in engine.llm.calls if call.startswith(("sleep", "wake"))]
        assert asked == (2 * ["sleep 2", "wake_up ['weights']", "wake_up ['kv_cache']"] if sleeps else [])

    run(story())


@pytest.mark.parametrize("sleeps", [True, False])
def test_what_it_used_is_told_by_phase(sleeps: bool) -> None:
    """Measured as each phase ends. While an engine that can sleep is not whole, torch's allocator counts what is not
    there: only the GPU is told."""

    async def story() -> None:
        engine = Engine(sleeps=sleeps)
        await engine.memory.enter("generate")
        await engine.sleeping.sleep()
        await engine.sleeping.wake_weights()
        told = (await engine.adopt(1)).memory
        assert [list(by_phase) for by_phase in told] == [["generate", "sleep", "wake", "publish"]] * 2
        for by_phase, use in zip(told, USES, strict=True):
            assert by_phase["generate"] == use
            assert by_phase["sleep"] == by_phase["publish"] == (use.of_gpu() if sleeps else use)
        assert USES[0].of_gpu() == MemoryUse(gpu_in_use=5, gpu_peak=6, gpu_total=99)
        # Published once more, with nothing sampled between: of the same step.
        assert set((await engine.adopt(1)).memory[0]) == {"generate", "sleep", "wake", "publish"}
        engine.memory.begin_step()
        await engine.sleeping.wake_cache()
        assert set((await engine.adopt(2)).memory[0]) == {"generate", "publish"}

    run(story())


def test_vllm_knows_these_memories() -> None:
    assert {"weights", "kv_cache"} == SLEEP_TAGS


def test_it_does_not_sample_before_it_has_weights() -> None:
    async def story() -> None:
        engine = Engine()
        await engine.sleeping.sleep()
        for work in (engine.sample, lambda: engine.updates.receive(1), lambda: engine.updates.connect(None)):  # type: ignore[arg-type]
            with pytest.raises(RuntimeError, match=r"^engine 0 cannot .*: its memory is asleep, not awake"):
                await work()
        with pytest.raises(RuntimeError, match="engine 0 cannot sample again: its memory is asleep, not loaded"):
            await engine.sleeping.wake_cache()
        await engine.sleeping.wake_weights()
        with pytest.raises(RuntimeError, match="engine 0 cannot sample again: its memory is blank, not loaded"):
            await engine.sleeping.wake_cache()
        await engine.adopt(1)
        with pytest.raises(RuntimeError, match="engine 0 cannot sample: its memory is loaded, not awake"):
            await engine.sample()
        assert engine.state.now == "ready", "whoever asked too early has broken nothing"

    run(story())


def test_it_leaves_the_policy_and_meets_the_next() -> None:
    """A version that was still to come is forgotten first."""

    async def story() -> None:
        engine, called = Engine(), list[str]()

        async def note(method: str, **arguments: Any) -> None:
            called.append(method)

        engine.updates._call_workers = note  # type: ignore[method-assign]
        await engine.updates.disconnect()
        await engine.updates.receive(1)
        await engine.updates.disconnect()
        assert called == ["megarl_disconnect", "start_weight_update", "update_weights", "megarl_disconnect"]
        assert engine.state.memory == "awake"
        await engine.adopt(0)
        await engine.sample()

    run(story())


def test_a_worker_lets_go_of_the_policy() -> None:
    worker, ended = WorkerExtension(), list[int]()
    worker.weight_transfer_engine = SimpleNamespace(shutdown=lambda: ended.append(1))
    assert worker.megarl_call("megarl_disconnect", {}) is None
    assert ended == [1]


def test_it_sleeps_when_what_it_samples_has_ended() -> None:
    async def story() -> None:
        engine = Engine()
        async with engine.state.sampling():
            sleeping = asyncio.create_task(engine.sleeping.sleep())
            await asyncio.sleep(0.01)
            assert (engine.state.memory, engine.llm.calls) == ("awake", [])
        await sleeping
        assert engine.llm.calls == ["collective_rpc megarl_memory", "sleep 2", "collective_rpc megarl_memory"]

    run(story())


def test_halfway_it_can_be_put_to_sleep_again() -> None:
    """As for a publication that is repeated with another engine."""

    async def story() -> None:
        engine = Engine()
        await engine.sleeping.sleep()
        await engine.sleeping.wake_weights()
        await engine.sleeping.sleep()
        assert engine.state.memory == "asleep"
        assert engine.llm.calls.count("sleep 2") == 2

    run(story())


@pytest.mark.parametrize("call", ["sleep", "wake_up"])
def test_an_engine_whose_memory_nobody_knows_is_broken(call: str) -> None:
    async def story() -> None:
        engine = Engine(**{call: AssertionError("Memory usage increased after sleeping.")})
        turn = [engine.sleeping.sleep, engine.sleeping.wake_weights]
        if call == "wake_up":
            await turn.pop(0)()
        with pytest.raises(EngineError, match=r"engine 0: its memory did not become (asleep|blank): Memory usage"):
            await turn[0]()
        assert engine.state.now == "broken"
        with pytest.raises(EngineError, match=r"engine 0 cannot sample: it is broken \(its memory did not become"):
            await engine.sample()

    run(story())


def test_weights_that_were_not_installed_leave_it_blank() -> None:
    async def story() -> None:
        engine = Engine(reset_prefix_cache=RuntimeError("out of memory"))
        await engine.sleeping.sleep()
        await engine.sleeping.wake_weights()
        with pytest.raises(WeightAdoptionError, match="out of memory"):
            await engine.adopt(1)
        assert (engine.state.now, engine.state.memory) == ("broken", "blank")

    run(story())


def test_vllm_is_told_whether_it_has_to_sleep(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Any) -> None:
    from vllm.platforms import current_platform

    model = ModelConfig(path=str(tiny_model_dir), dtype="float32")
    assert not build_engine_args(RolloutConfig(), model, sleeps=True).enable_sleep_mode, "its CPU build refuses that"
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert build_engine_args(RolloutConfig(), model, sleeps=True).enable_sleep_mode
    assert not build_engine_args(RolloutConfig(), model).enable_sleep_mode
    with pytest.raises(
        ConfigError, match=r"enable_sleep_mode: megarl sets this argument itself; set cluster\.colocate"
    ):
        check_vllm_overrides({"enable_sleep_mode": True})


def test_an_engine_that_has_to_sleep_refuses_segments_that_cannot_be_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    process = EngineProcess(
        config=RolloutConfig(),
        model=ModelConfig(path="unused"),
        state=EngineState("engine 0"),
        log_path=None,
        shares_gpus=True,
    )
    with pytest.raises(ConfigError, match="PYTORCH_CUDA_ALLOC_CONF has expandable_segments on"):
        asyncio.run(process.start())
