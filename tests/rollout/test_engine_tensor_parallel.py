"""Two tensor-parallel workers, and engines that die: minutes long."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.reshard.transport import WeightSender
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.failures import EngineError, EngineStartError
from tests.rollout.reference import checkpoint_tensors, make_model, random_weights
from tests.rollout.test_engine import REQUESTS, TOLERANCE, engine_processes, greatest_difference, publish, shared_files

pytestmark = pytest.mark.slow

CONFIG = RolloutConfig(tensor=2, max_prompt_tokens=32, max_response_tokens=24, cpu_kv_cache_gib=0.25)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model(path, tied=False)
    return path


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(model_path: Path, runner: asyncio.Runner) -> Iterator[RolloutEngine]:
    files, processes = shared_files(), engine_processes()
    model = ModelConfig(path=str(model_path), dtype="float32")
    engine = RolloutEngine(config=CONFIG, model=model, index=0, stop_token_ids=())
    runner.run(engine.start())
    yield engine
    runner.run(engine.shutdown())
    assert engine_processes() == processes
    assert shared_files() <= files


@pytest.mark.parametrize("transport", ["shared_memory", "broadcast"])
def test_new_weights_and_back(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path, transport: str) -> None:
    first = runner.run(engine.generate(REQUESTS))
    assert greatest_difference(model_path, None, first, 1.0) < TOLERANCE
    old = checkpoint_tensors(model_path)
    new = random_weights(old, seed=7)
    sender = WeightSender(transport=transport, receivers=2, bucket_bytes=1 << 18, timeout_s=60.0)
    try:
        runner.run(engine.connect(sender.endpoint))
        version = engine.policy_version + 1
        runner.run(publish(engine, sender, version, new))
        rollouts = runner.run(engine.generate(REQUESTS))
        assert greatest_difference(model_path, new, rollouts, 1.0) < TOLERANCE
        runner.run(publish(engine, sender, version + 1, old))
        back = runner.run(engine.generate(REQUESTS))
    finally:
        sender.close()
    assert [(one.response, one.behavior_logp) for one in back] == [(one.response, one.behavior_logp) for one in first]


def test_incomplete_weights_name_the_layers(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path) -> None:
    """k_proj of one layer is missing: two thirds of a fused matrix would be new and one third old."""
    weights = {name: tensor for name, tensor in checkpoint_tensors(model_path).items() if "1.self_attn.k" not in name}
    sender = WeightSender(transport="shared_memory", receivers=2, bucket_bytes=1 << 18, timeout_s=60.0)

    async def both() -> list[Any]:
        sending = asyncio.to_thread(sender.send, 50, weights.items())
        return await asyncio.gather(sending, engine.adopt_weights(50), return_exceptions=True)

    try:
        runner.run(engine.connect(sender.endpoint))
        _, adopted = runner.run(both())
    finally:
        sender.close()
    # q, k, v of 4 + 2 + 2 heads of 32, on 2 ranks: 128 rows x 128 and 128 biases, of which k has 32 and 32.
    assert "layers.1.self_attn.qkv_proj (12384 of 16512 elements)" in str(adopted)
    with pytest.raises(EngineError, match="it is broken"):
        runner.run(engine.generate(REQUESTS))


def start_and_wait(model_path: str, ready: Any) -> None:
    async def main() -> None:
        model = ModelConfig(path=model_path, dtype="float32")
        engine = RolloutEngine(config=CONFIG, model=model, index=0, stop_token_ids=())
        await engine.start()
        ready.put([child.pid for child in psutil.Process().children(recursive=True)])
        await asyncio.sleep(600)

    asyncio.run(main())


def test_processes_end_when_their_owner_is_killed(model_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    files = shared_files()
    owner = context.Process(target=start_and_wait, args=(str(model_path), ready))
    owner.start()
    children = [psutil.Process(pid) for pid in ready.get(timeout=200)]
    os.kill(owner.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    owner.join()
    for path in shared_files() - files:
        (Path("/dev/shm") / path).unlink()  # a killed process cannot tidy up; small files that the next reboot removes
    assert alive == []


def test_killed_core_process_is_an_error_that_says_so(model_path: Path, runner: asyncio.Runner) -> None:
    model = ModelConfig(path=str(model_path), dtype="float32")
    engine = RolloutEngine(config=CONFIG.model_copy(update={"tensor": 1}), model=model, index=0, stop_token_ids=())
    # Other tests of this process may have left it children that have nothing to do with the engine.
    others = set(psutil.Process().children())
    runner.run(engine.start())
    try:
        started = set(psutil.Process().children()) - others
        (core,) = (child for child in started if "resource_tracker" not in " ".join(child.cmdline()))
        core.kill()
        with pytest.raises(EngineError, match="engine 0 cannot go on: its process died"):
            runner.run(engine.generate(REQUESTS))
        with pytest.raises(EngineError, match="it is broken"):
            runner.run(engine.generate(REQUESTS))
    finally:
        runner.run(engine.shutdown())


def test_too_many_tokens_for_the_model(model_path: Path, runner: asyncio.Runner) -> None:
    model = ModelConfig(path=str(model_path), dtype="float32")
    config = CONFIG.model_copy(update={"max_prompt_tokens": 4096})
    engine = RolloutEngine(config=config, model=model, index=0, stop_token_ids=())
    with pytest.raises(EngineStartError, match=r"lower rollout\.max_prompt_tokens and rollout\.max_response_tokens"):
        runner.run(engine.start())


def test_too_much_memory_is_explained_from_the_worker_log(model_path: Path, runner: asyncio.Runner) -> None:
    files, processes = shared_files(), engine_processes()
    model = ModelConfig(path=str(model_path), dtype="float32")
    config = CONFIG.model_copy(update={"tensor": 1, "cpu_kv_cache_gib": 100000.0})
    engine = RolloutEngine(config=config, model=model, index=0, stop_token_ids=())
    with pytest.raises(
        EngineStartError, match=r"less than requested memory.* To change: lower rollout\.cpu_kv_cache_gib"
    ):
        runner.run(engine.start())
    assert engine_processes() == processes
    assert shared_files() <= files
