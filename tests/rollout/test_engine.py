"""A real vLLM engine on one worker: sampling, log-probs, and weights through both transports.

The tests share one engine and run in file order.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.records import Rollout, SampleRequest
from megarl.reshard.packer import Packer
from megarl.reshard.plan import Place
from megarl.reshard.receiver import NOT_INSTALLED
from megarl.reshard.signals import TransportError
from megarl.reshard.tally import Tally
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.failures import EngineStartError
from megarl.rollout.weight_updates import Adoption
from tests.rollout.reference import EOS, VOCAB, checkpoint_tensors, make_model, random_weights, reference_logp
from tests.rollout.trainer import Trainer

CONFIG = RolloutConfig(max_prompt_tokens=32, max_response_tokens=24, cpu_kv_cache_gib=0.25)
REQUESTS = [SampleRequest(prompt=tuple(range(5, 5 + n)), seed=n) for n in (1, 3, 9, 32)]
TOLERANCE = 1e-3


def shared_files() -> set[str]:
    """Files of vLLM's and megarl's kind in /dev/shm that no process has mapped: other runs' files are in use."""
    mapped = set()
    for process in psutil.process_iter():
        try:
            mapped |= {Path(entry.path).name for entry in process.memory_maps() if entry.path.startswith("/dev/shm/")}
        except psutil.Error:
            continue  # ended meanwhile, or another user's
    names = {path.name for path in Path("/dev/shm").iterdir()}
    return {name for name in names - mapped if name.startswith(("megarl", "vllm", "psm_"))}


def engine_processes() -> list[str]:
    names = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [name for name in names if "resource_tracker" not in name]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model(path, tied=True)
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
    runner.run(engine.shutdown())  # idempotent
    assert engine_processes() == processes
    assert shared_files() <= files


def greatest_difference(path: Path, weights: dict | None, rollouts: list[Rollout], temperature: float) -> float:
    return max(
        float((reference_logp(path, weights, rollout, temperature) - torch.tensor(rollout.behavior_logp)).abs().max())
        for rollout in rollouts
    )


@pytest.fixture(scope="module")
def first(engine: RolloutEngine, runner: asyncio.Runner) -> list[Rollout]:
    return runner.run(engine.generate(REQUESTS))


def test_same_seed_same_tokens_and_another_seed_others(
    engine: RolloutEngine, runner: asyncio.Runner, first: list[Rollout]
) -> None:
    assert runner.run(engine.generate(REQUESTS)) == first
    assert [len(rollout.response) for rollout in first] == [24] * 4
    assert {rollout.stop_reason for rollout in first} == {"length"}
    assert [tuple(rollout.prompt) for rollout in first] == [request.prompt for request in REQUESTS]
    others = runner.run(engine.generate([SampleRequest(prompt=request.prompt, seed=99) for request in REQUESTS]))
    assert all(
        other.response.tolist() != rollout.response.tolist() for other, rollout in zip(others, first, strict=True)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behavior_logp_is_after_temperature(
    engine: RolloutEngine, runner: asyncio.Runner, model_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._sampler, "_config", CONFIG.model_copy(update={"temperature": temperature}))
    rollouts = runner.run(engine.generate(REQUESTS))
    assert greatest_difference(model_path, None, rollouts, temperature) < TOLERANCE
    assert (
        greatest_difference(model_path, None, rollouts, 1.7 - temperature) > 0.1
    )  # the other temperature is told apart


def test_stop_token_ends_a_response_and_belongs_to_it(
    engine: RolloutEngine, runner: asyncio.Runner, first: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = int(first[0].response[5])
    monkeypatch.setattr(engine._sampler, "_stop_token_ids", (stop,))
    (stopped,) = runner.run(engine.generate(REQUESTS[:1]))
    length = first[0].response.tolist().index(stop) + 1
    assert np.array_equal(stopped.response, first[0].response[:length])
    assert np.array_equal(stopped.behavior_logp, first[0].behavior_logp[:length])
    assert stopped.stop_reason == "stop"


def test_only_the_given_tokens_stop(first: list[Rollout]) -> None:
    """config.json calls half of the vocabulary end of sequence; the engine was given no stop token."""
    tokens = {token for rollout in first for token in rollout.response.tolist()}
    assert tokens & set(EOS)
    assert max(tokens) < VOCAB  # rows that pad the vocabulary are never sampled


@pytest.mark.parametrize("length", [0, 33])
def test_prompt_length_is_checked(engine: RolloutEngine, runner: asyncio.Runner, length: int) -> None:
    with pytest.raises(ValueError, match=rf"request 0 has a prompt of {length} tokens; expected 1 \.\. 32"):
        runner.run(engine.generate([SampleRequest(prompt=(1,) * length, seed=0)]))


@pytest.mark.parametrize(("transport", "delta"), [("shared_memory", False), ("network", False), ("network", True)])
def test_new_weights_and_back(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    model_path: Path,
    first: list[Rollout],
    transport: str,
    delta: bool,
) -> None:
    old = checkpoint_tensors(model_path)
    new = random_weights(old, seed=7)
    trainer = Trainer(model_path, transport=transport, delta=delta)
    try:
        runner.run(trainer.connect(engine))
        version = engine.policy_version + 1
        report = runner.run(trainer.publish(engine, version, new))
        assert report.messages > 1
        rollouts = runner.run(engine.generate(REQUESTS))
        assert {rollout.policy_version for rollout in rollouts} == {version}
        assert greatest_difference(model_path, new, rollouts, 1.0) < TOLERANCE
        assert greatest_difference(model_path, None, rollouts, 1.0) > 0.1
        again = runner.run(trainer.publish(engine, version + 1, new))
        assert (again.bytes < 0.01 * report.bytes) == delta  # nothing has changed
        runner.run(trainer.publish(engine, version + 2, old))
        back = runner.run(engine.generate(REQUESTS))
    finally:
        trainer.close()
    assert [rollout.response.tolist() for rollout in back] == [rollout.response.tolist() for rollout in first]
    assert [rollout.behavior_logp.tolist() for rollout in back] == [rollout.behavior_logp.tolist() for rollout in first]


def test_its_worker_measures_its_memory(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path) -> None:
    """The worker's process, not this one: it has vLLM loaded, and the KV cache's pages as far as it wrote them."""
    trainer, weights = Trainer(model_path), checkpoint_tensors(model_path)

    async def step() -> Adoption:
        await engine.generate(REQUESTS)
        version = engine.policy_version + 1
        await trainer.send(engine, version, weights)
        return await engine.adopt_weights(version)

    try:
        runner.run(trainer.connect(engine))
        for _ in range(2):
            (told,) = runner.run(step()).memory
            assert list(told) == ["generate", "publish"]
            for use in told.values():
                assert use.peak is not None
                assert use.end is not None
                assert 100 << 20 < use.end <= use.peak < 8 << 30
                assert use.gpu_peak is None
    finally:
        trainer.close()


def test_adoption_waits_for_running_requests(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path) -> None:
    """Rollouts asked for before an adoption carry the old version, later ones the new, however the calls interleave."""
    before = engine.policy_version
    trainer = Trainer(model_path)

    async def interleaved() -> tuple[list[Rollout], list[Rollout]]:
        early = asyncio.create_task(engine.generate(REQUESTS))
        await asyncio.sleep(0.02)
        adoption = asyncio.create_task(trainer.publish(engine, before + 1, checkpoint_tensors(model_path)))
        await asyncio.sleep(0.02)
        await adoption
        late = asyncio.create_task(engine.generate(REQUESTS))
        return await early, await late

    try:
        runner.run(trainer.connect(engine))
        early, late = runner.run(interleaved())
    finally:
        trainer.close()
    assert {rollout.policy_version for rollout in early} == {before}
    assert {rollout.policy_version for rollout in late} == {before + 1}


def test_sampling_goes_on_while_weights_arrive(
    engine: RolloutEngine, runner: asyncio.Runner, model_path: Path, first: list[Rollout]
) -> None:
    """Everything but installing happens beside sampling, which sees the old weights until then."""
    version = engine.policy_version + 1
    new = random_weights(checkpoint_tensors(model_path), seed=8)
    trainer = Trainer(model_path)
    try:
        runner.run(trainer.connect(engine))
        runner.run(trainer.send(engine, version, new))
        meanwhile = runner.run(engine.generate(REQUESTS))
        assert [rollout.behavior_logp.tolist() for rollout in meanwhile] == [
            rollout.behavior_logp.tolist() for rollout in first
        ]
        adoption = runner.run(engine.adopt_weights(version))
        assert adoption.install_s > 0
        assert greatest_difference(model_path, new, runner.run(engine.generate(REQUESTS)), 1.0) < TOLERANCE
        runner.run(trainer.publish(engine, version + 1, checkpoint_tensors(model_path)))
    finally:
        trainer.close()


def test_engines_are_counted(engine: RolloutEngine, runner: asyncio.Runner, model_path: Path) -> None:
    trainer = Trainer(model_path, tensor=2, timeout_s=5.0)
    with pytest.raises(TransportError, match=r"expects engines of 2 tensor ranks, this one has 1"):
        runner.run(trainer.connect(engine))


@pytest.mark.parametrize("transport", ["shared_memory", "network"])
def test_changed_bytes_are_refused_and_the_engine_samples_on(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    model_path: Path,
    first: list[Rollout],
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version, trainer = engine.policy_version + 1, Trainer(model_path, transport=transport)
    runner.run(trainer.connect(engine))
    honest = Packer.pack

    def flip_after(packer: Packer, place: Place, out: torch.Tensor, tally: Tally) -> list[int]:
        checksums = honest(packer, place, out, tally)
        out.view(torch.uint8)[5] ^= 1
        return checksums

    monkeypatch.setattr(Packer, "pack", flip_after)
    new = random_weights(checkpoint_tensors(model_path), seed=9)
    with pytest.raises(TransportError, match=rf"version {version}: engine 0 worker 0 failed: arrived changed from"):
        runner.run(trainer.send(engine, version, new))
    with pytest.raises(TransportError, match=NOT_INSTALLED):
        runner.run(engine.adopt_weights(version))
    rollouts = runner.run(engine.generate(REQUESTS))
    assert [rollout.behavior_logp.tolist() for rollout in rollouts] == [
        rollout.behavior_logp.tolist() for rollout in first
    ]
    assert {rollout.policy_version for rollout in rollouts} == {version - 1}
    # Over new connections the same version arrives.
    monkeypatch.setattr(Packer, "pack", honest)
    try:
        runner.run(trainer.connect(engine))
        runner.run(trainer.publish(engine, version, new))
        assert greatest_difference(model_path, new, runner.run(engine.generate(REQUESTS)), 1.0) < TOLERANCE
        runner.run(trainer.publish(engine, version + 1, checkpoint_tensors(model_path)))
    finally:
        trainer.close()


def test_start_timeout_leaves_nothing_behind(model_path: Path, runner: asyncio.Runner) -> None:
    files, processes = shared_files(), engine_processes()
    model = ModelConfig(path=str(model_path), dtype="float32")
    late = RolloutEngine(
        config=CONFIG.model_copy(update={"start_timeout_s": 6.0}), model=model, index=0, stop_token_ids=()
    )
    with pytest.raises(EngineStartError, match=r"was not ready after rollout.start_timeout_s = 6 s"):
        runner.run(late.start())
    assert engine_processes() == processes
    assert shared_files() <= files


def test_missing_model_says_what_to_change(tmp_path: Path, runner: asyncio.Runner) -> None:
    model = ModelConfig(path=str(tmp_path / "absent"), dtype="float32")
    absent = RolloutEngine(config=CONFIG, model=model, index=0, stop_token_ids=())
    with pytest.raises(
        EngineStartError, match=r"absent.*model.path must be the directory of a Hugging Face checkpoint"
    ):
        runner.run(absent.start())
