"""Two tensor-parallel workers, what they want of a checkpoint, and engines that die: minutes long."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.models.boxes import Box
from megarl.models.families import read_model_shape
from megarl.models.serving import engine_boxes
from megarl.models.table import hf_tensors
from megarl.reshard.signals import TransportError
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.failures import EngineError, EngineStartError
from tests.rollout.reference import checkpoint_tensors, make_model, random_weights
from tests.rollout.test_engine import REQUESTS, TOLERANCE, engine_processes, greatest_difference, shared_files
from tests.rollout.trainer import Trainer

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
    with pytest.MonkeyPatch.context() as patch:  # lets a test run a function of its own inside the workers
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        runner.run(engine.start())
        yield engine
    runner.run(engine.shutdown())
    assert engine_processes() == processes
    assert shared_files() <= files


@pytest.mark.parametrize("transport", ["shared_memory", "network"])
def test_new_weights_and_back(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path, transport: str) -> None:
    first = runner.run(engine.generate(REQUESTS))
    assert greatest_difference(model_path, None, first, 1.0) < TOLERANCE
    old = checkpoint_tensors(model_path)
    new = random_weights(old, seed=7)
    trainer = Trainer(model_path, tensor=2, transport=transport)
    try:
        runner.run(trainer.connect(engine))
        version = engine.policy_version + 1
        runner.run(trainer.publish(engine, version, new))
        rollouts = runner.run(engine.generate(REQUESTS))
        assert greatest_difference(model_path, new, rollouts, 1.0) < TOLERANCE
        runner.run(trainer.publish(engine, version + 1, old))
        back = runner.run(engine.generate(REQUESTS))
    finally:
        trainer.close()
    assert back == first


def wanted_boxes(worker: Any) -> list[Box]:
    return list(worker.weight_transfer_engine._recording.targets)


def whole_tensors(worker: Any) -> dict[str, str]:
    return worker.weight_transfer_engine._recording.whole


def multiply_before_loading(worker: Any, tensor: str) -> None:
    """From now on the model's loader does arithmetic on one tensor, which no slice expresses."""
    model = worker.weight_transfer_engine.model
    load_weights = model.load_weights
    model.load_weights = lambda weights: load_weights(
        (name, values * 1 if name == tensor else values) for name, values in weights
    )


def call_workers(engine: RolloutEngine, runner: asyncio.Runner, function: Any, *args: Any) -> list[Any]:
    return runner.run(engine._process.llm.collective_rpc(function, args=args))


def test_the_plan_verb_knows_what_vllm_asks_for(
    engine: RolloutEngine, runner: asyncio.Runner, model_path: Path
) -> None:
    """`megarl plan` plans without vLLM, from models/serving.py; a run records vLLM. They must agree."""
    trainer = Trainer(model_path, tensor=2)
    try:
        runner.run(trainer.connect(engine))
    finally:
        trainer.close()
    shape = read_model_shape(model_path)
    for rank, recorded in enumerate(call_workers(engine, runner, wanted_boxes)):
        assert set(recorded) == set(engine_boxes(shape, tensor_rank=rank, tensor_size=2))
    assert call_workers(engine, runner, whole_tensors) == [{}, {}]


def test_the_policy_lacks_a_tensor(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path) -> None:
    """k_proj of one layer is missing: two thirds of a fused matrix would be new and one third old."""
    trainer = Trainer(model_path, tensor=2, timeout_s=20.0)
    fewer = {name: dims for name, dims in hf_tensors(trainer.offer.shape).items() if "1.self_attn.k" not in name}
    trainer.offer = replace(trainer.offer, tensors=fewer)
    # q, k, v of 4 + 2 + 2 heads of 32, on 2 ranks: 128 rows x 128, of which k has 32.
    with pytest.raises(TransportError, match=r"layers\.1\.self_attn\.qkv_proj\.weight \(12288 of 16384 elements\)"):
        runner.run(trainer.connect(engine))
    assert len(runner.run(engine.generate(REQUESTS))) == len(REQUESTS)


def test_a_loader_that_does_arithmetic_gets_its_tensor_whole(
    engine: RolloutEngine, runner: asyncio.Runner, model_path: Path
) -> None:
    """Only its parameter goes through vLLM's own loader, and the log names it."""
    tensor = "model.layers.0.mlp.down_proj.weight"
    call_workers(engine, runner, multiply_before_loading, tensor)
    new = random_weights(checkpoint_tensors(model_path), seed=12)
    trainer = Trainer(model_path, tensor=2)
    try:
        runner.run(trainer.connect(engine))
        runner.run(trainer.publish(engine, engine.policy_version + 1, new))
        rollouts = runner.run(engine.generate(REQUESTS))
    finally:
        trainer.close()
    assert greatest_difference(model_path, new, rollouts, 1.0) < TOLERANCE
    assert [list(whole) for whole in call_workers(engine, runner, whole_tensors)] == [[tensor], [tensor]]
    log = engine._process.log_text()
    assert f"{tensor} reaches this engine whole and goes through vLLM's own loader: " in log
    assert log.count("reaches this engine whole") == 2  # once for each worker


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
