"""Faults in the middle of a publication between real Megatron ranks and a real engine of two workers.

Whatever ends, the engine has old weights or new ones: it samples on from the old, token for token.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from megarl.config.run import RunConfig
from megarl.reshard.signals import TransportError
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.failures import EngineError
from tests.e2e.policy_processes import PolicyProcesses
from tests.e2e.test_publication_layouts import (
    REQUESTS,
    Layout,
    configure,
    connect,
    numbers,
    publish,
    save_changed,
    start_engines,
)
from tests.rollout.reference import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TIMEOUT_S = 5.0
LAYOUT = Layout(
    policy={"tensor": 2, "world_size": 2},
    rollout_tensor=2,
    publish={"transport": "network", "timeout_s": TIMEOUT_S},
)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    start, trained = tmp_path / "start", tmp_path / "trained"
    make_model(start, tied=False)
    save_changed(start, trained)
    return start, trained


@asynccontextmanager
async def running_engine(config: RunConfig, path: Path) -> AsyncIterator[RolloutEngine]:
    (engine,) = await start_engines(config, path)
    try:
        yield engine
    finally:
        await engine.shutdown()


async def publish_into_fault(policy: PolicyProcesses, engine: RolloutEngine, version: int) -> list[str]:
    """The texts of the ranks that failed, in time, and the engine's own refusal last."""
    started = time.monotonic()
    await engine.receive_weights(version)
    policy.send("publish_weights", version)
    answers = await asyncio.to_thread(policy.answers, timeout_s=3 * TIMEOUT_S)
    with pytest.raises((TransportError, EngineError)) as refusal:
        await engine.adopt_weights(version)
    assert time.monotonic() - started < 6 * TIMEOUT_S
    return [str(answer) for answer in answers if isinstance(answer, RuntimeError)] + [str(refusal.value)]


def test_a_policy_rank_stalls_and_then_dies(paths: tuple[Path, Path]) -> None:
    start, trained = paths
    config = configure(start, LAYOUT)

    async def run(policy: PolicyProcesses) -> None:
        async with running_engine(config, start) as engine:
            policy.call("load", str(trained))
            before = numbers(await engine.generate(REQUESTS))
            await connect(policy, [engine])
            policy.call("act_at_message", 1, 4, "stop")
            texts = await publish_into_fault(policy, engine, 1)
            os.kill(policy.processes[1].pid, signal.SIGCONT)
            check_texts(texts, version=1, peer="policy rank 1")
            assert numbers(await engine.generate(REQUESTS)) == before

            policy.receive_late()
            await connect(policy, [engine])  # it goes on: over new connections the weights arrive
            await publish(policy, [engine], 1)
            after = numbers(await engine.generate(REQUESTS))
            assert after != before
            policy.call("load", str(start))
            policy.call("act_at_message", 1, 4, "kill")
            texts = await publish_into_fault(policy, engine, 2)
            check_texts(texts, version=2, peer="policy rank 1")
            assert "policy rank 1: its process is gone" in texts
            assert numbers(await engine.generate(REQUESTS)) == after

    with PolicyProcesses(config) as policy:
        asyncio.run(run(policy))


def test_an_engine_worker_dies(paths: tuple[Path, Path]) -> None:
    start, trained = paths
    config = configure(start, LAYOUT)

    async def run(policy: PolicyProcesses) -> None:
        async with running_engine(config, start) as engine:
            policy.call("load", str(trained))
            await connect(policy, [engine])
            policy.call("act_at_message", 0, 4, "wait")
            killer = asyncio.create_task(kill_worker_soon())
            texts = await publish_into_fault(policy, engine, 1)
            await killer
            check_texts(texts[:-1], version=1, peer="engine 0 worker")  # vLLM ends the other worker too
            assert "engine 0 cannot go on" in texts[-1]
        async with running_engine(config, start) as rebuilt:  # and connects anew
            await connect(policy, [rebuilt])
            before = numbers(await rebuilt.generate(REQUESTS))
            await publish(policy, [rebuilt], 1)
            assert numbers(await rebuilt.generate(REQUESTS)) != before

    with PolicyProcesses(config) as policy:
        asyncio.run(run(policy))


async def kill_worker_soon() -> None:
    """Worker 1, while policy rank 0 waits in the middle of its messages."""
    await asyncio.sleep(1.5)
    children = psutil.Process().children(recursive=True)
    (worker,) = (child for child in children if "Worker_TP1" in " ".join(child.cmdline()))
    worker.kill()


def check_texts(texts: list[str], *, version: int, peer: str) -> None:
    """Some text names version, tensors and peer; every one but of a dead rank names the version."""
    assert any(f"version {version}" in text and peer in text for text in texts), texts
    assert any(re.search(r"model\.|lm_head", text) for text in texts), texts
