"""Real Megatron ranks to real vLLM engines, over layouts: bit-equal to vLLM's own loader, token-identical to an engine
that starts from the exported checkpoint."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.records import Rollout, SampleRequest
from megarl.rollout.engine import RolloutEngine
from tests.e2e.policy_processes import PolicyProcesses
from tests.policy.ranks import make_config
from tests.rollout.loader_check import differing_parameters
from tests.rollout.reference import VOCAB, make_model, random_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REQUESTS = [SampleRequest(prompt=tuple(range(5, 5 + n)), seed=n) for n in (1, 3, 9, 20)]
SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class Layout:
    policy: dict[str, int]
    engines: int = 1
    rollout_tensor: int = 1
    publish: dict[str, Any] = field(default_factory=dict)


LAYOUTS = {
    "TP2xPP2 to TP2": Layout(policy={"tensor": 2, "pipeline": 2, "world_size": 4}, rollout_tensor=2),
    "PP2 to one engine": Layout(policy={"pipeline": 2, "world_size": 2}, publish={"transport": "network"}),
    "TP2xDP2 to two engines": Layout(
        policy={"tensor": 2, "world_size": 4}, engines=2, publish={"transport": "network", "delta": True}
    ),
}


def configure(path: Path, layout: Layout, *, dtype: str = "float32") -> RunConfig:
    rollout = {
        "engines": layout.engines,
        "tensor": layout.rollout_tensor,
        "max_prompt_tokens": 32,
        "max_response_tokens": 24,
        "cpu_kv_cache_gib": 0.25,
        "publish": {"timeout_s": 60.0, "bucket_mib": 1, **layout.publish},
    }
    return make_config(path, parallel=layout.policy, rollout=rollout, model__dtype=dtype)


async def start_engines(config: RunConfig, path: Path) -> list[RolloutEngine]:
    model = config.model.model_copy(update={"path": str(path)})
    engines = [
        RolloutEngine(config=config.rollout, model=model, index=index, stop_token_ids=())
        for index in range(config.rollout.engines)
    ]
    for engine in engines:
        await engine.start()
    return engines


async def together(
    policy: PolicyProcesses, method: str, args: tuple[Any, ...], *others: Coroutine[Any, Any, Any]
) -> Any:
    """The policy's call, and engines' that need it to go on."""
    results = await asyncio.gather(asyncio.to_thread(policy.call, method, *args), *others)
    return results[0]


async def connect(policy: PolicyProcesses, engines: list[RolloutEngine]) -> None:
    endpoint = (await asyncio.to_thread(policy.call, "open_session"))[0]
    await together(policy, "join_session", (endpoint,), *(engine.connect(endpoint) for engine in engines))


async def publish(policy: PolicyProcesses, engines: list[RolloutEngine], version: int) -> Any:
    for engine in engines:
        await engine.receive_weights(version)
    reports = await asyncio.to_thread(policy.call, "publish_weights", version)
    for engine in engines:
        await engine.adopt_weights(version)
    return reports


async def check_against_loader(engine: RolloutEngine, exported: Path) -> None:
    for count, wrong in await engine._process.llm.collective_rpc(differing_parameters, args=(str(exported),)):
        assert wrong == []
        assert count > 10


def numbers(rollouts: list[Rollout]) -> list[Any]:
    return [(rollout.response.tolist(), rollout.behavior_logp.tolist()) for rollout in rollouts]


async def run_layout(config: RunConfig, start: Path, trained: Path, directory: Path) -> None:
    """Engines start from one checkpoint, the policy publishes another; twice, the second time a little changed."""
    exported = directory / "exported"
    engines = await start_engines(config, start)
    try:
        with PolicyProcesses(config) as policy:
            policy.call("load", str(trained))
            await connect(policy, engines)
            before = [numbers(await engine.generate(REQUESTS)) for engine in engines]
            await publish(policy, engines, 1)
            policy.call("export_hf", str(exported))
            after = [numbers(await engine.generate(REQUESTS)) for engine in engines]
            for engine in engines:
                await check_against_loader(engine, exported)
            await publish(policy, engines, 2)
            again = [numbers(await engine.generate(REQUESTS)) for engine in engines]
            for engine in engines:
                await check_against_loader(engine, exported)
    finally:
        for engine in engines:
            await engine.shutdown()
    assert after == again
    assert all(numbers != old for numbers, old in zip(after, before, strict=True))
    (fresh, *others) = await start_engines(config, exported)
    try:
        expected = numbers(await fresh.generate(REQUESTS))
    finally:
        for engine in (fresh, *others):
            await engine.shutdown()
    assert after == [expected] * len(after)


@pytest.fixture(autouse=True)
def functions_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test run a function of its own inside vLLM's workers."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_published_is_loaded(name: str, tied: bool, tmp_path: Path) -> None:
    """Vocabulary of 997 rows: padded by Megarl to a multiple of 8 a rank, by vLLM to one of 64."""
    start, trained = tmp_path / "start", tmp_path / "trained"
    make_model(start, tied=tied)
    save_changed(start, trained)
    asyncio.run(run_layout(configure(start, LAYOUTS[name]), start, trained, tmp_path))


def save_changed(start: Path, trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(start)
    assert model.config.vocab_size == VOCAB
    model.load_state_dict(random_weights(model.state_dict(), seed=11))
    model.save_pretrained(trained)


def test_smollm2_from_three_tensor_ranks(tmp_path: Path) -> None:
    """A pretrained model in bfloat16, 9 heads in 3 groups on 3 ranks; the engine starts from halved weights."""
    from transformers import AutoModelForCausalLM

    if not SMOLLM2.is_dir():
        pytest.skip("`python tools/smollm2.py models/smollm2-135m` makes the checkpoint")
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    model.save_pretrained(tmp_path / "start")
    layout = Layout(policy={"tensor": 3, "world_size": 3})
    config = configure(SMOLLM2, layout, dtype="bfloat16")
    asyncio.run(run_layout(config, tmp_path / "start", SMOLLM2, tmp_path))
