"""Policy and engines that take turns on the same GPUs: whose turn it is, and what becomes of a fault in each phase.

The stand-ins refuse what the real parts refuse: work of the policy while an engine is awake, sampling before all have
adopted. So every run of the loop here also shows that nobody works out of turn.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.controller.protocols import Arrived
from megarl.controller.turns import GIB, ResidualMemory, SharedGpus
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard
from megarl.policy.reports import GpuUse
from megarl.records import Rollout, SampleRequest, TokenScores, TokenTrace
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineLost, ResidualMemoryError
from megarl.telemetry.metrics import Metrics, to_values
from tests.controller.fakes import Recorder, make_config, run

ENGINES = 2


class Turning(Recorder):
    """Two engines on the GPUs of two policy ranks. `faults`: by call and how often it was made before (from 1), what it
    ends with; an EngineLost takes engine 1 with it."""

    def __init__(self, **faults: dict[int, Exception]) -> None:
        super().__init__()
        self._faults = faults
        self._counts: dict[str, int] = {}
        self.memory = ["awake"] * ENGINES
        self.lost: set[int] = set()
        self.away = False
        self.phases: list[str] = []
        self.keeps = [4 * GIB] * ENGINES
        self._policy_came = False

    # faults

    def _happen(self, call: str) -> None:
        self._counts[call] = self._counts.get(call, 0) + 1
        error = self._faults.get(call, {}).get(self._counts[call])
        if isinstance(error, EngineLost):
            self.lost.add(1)
        if error is not None:
            raise error

    def _check_engines(self, call: str) -> None:
        if self.lost:
            raise EngineLost(f"rollout rank 1 died: it did not {call}")

    # the policy

    def _check_policy(self) -> None:
        assert not self.away, "the policy's memory is on the host"
        assert all(memory == "asleep" for memory in self.memory), self.memory

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        self._check_policy()
        return await super().score(shards, hold=hold)

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        self._check_policy()
        return await super().score_and_differentiate(shards, controls)

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        self._check_policy()
        return await super().train_mini_batch(index, controls, traced=traced)

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        self._check_policy()
        return await super().apply_update(traced=traced)

    async def give_way(self) -> list[GpuUse | None]:
        if not self.away:
            self.calls.append("give way")
            self._happen("give_way")
            self.away = True
        self._policy_came = True
        return [GpuUse(used=self._in_use(engine), reserved=2 * GIB) for engine in range(ENGINES)]

    async def take_back(self) -> None:
        self.calls.append("take back")
        self._happen("take_back")
        self.away = False

    async def publish_weights(self, version: int) -> Metrics:
        assert self.memory == ["blank"] * ENGINES, self.memory
        await super().publish_weights(version)
        self._happen("publish")
        return {}

    # the engines

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        assert self.away
        assert self.memory == ["awake"] * ENGINES, self.memory
        if (fault := self._faults.get("generate", {}).pop(self._counts.get("generate", 0) + 1, None)) is not None:
            self.calls.append("generate some")
            self.requests += requests
            arrived([0], [self.answer(0, requests[0])])
            self.lost.add(1)
            raise fault
        self._counts["generate"] = self._counts.get("generate", 0) + 1
        return await super().generate(requests, arrived)

    async def sleep(self) -> list[list[int] | None]:
        self.calls.append("sleep")
        with suppress(EngineLost):  # its processes are gone, and with them its memory
            self._happen("sleep")
        self.memory = ["asleep"] * ENGINES
        return [None if engine in self.lost else [self._in_use(engine)] for engine in range(ENGINES)]

    def _in_use(self, engine: int) -> int:
        """Of its GPU, where the policy has 6 GiB when it has given way."""
        return self.keeps[engine] + (6 * GIB if self._policy_came else 0)

    async def wake_weights(self) -> None:
        assert self.away, "an engine wakes on GPUs that the policy has"
        self.calls.append("wake weights")
        self._happen("wake_weights")
        self._check_engines("wake")
        self.memory = ["blank" if memory == "asleep" else memory for memory in self.memory]

    async def receive_weights(self, version: int) -> None:
        self._check_engines("receive")
        await super().receive_weights(version)

    async def adopt_weights(self, version: int) -> Metrics:
        metrics = await super().adopt_weights(version)
        self._happen("adopt")
        self.memory = ["loaded"] * ENGINES
        return metrics

    async def wake_cache(self) -> None:
        self.calls.append("wake caches")
        self._happen("wake_cache")
        assert self.memory == ["loaded"] * ENGINES, "an engine that has nothing to sample from"
        self.memory = ["awake"] * ENGINES

    async def restore(self) -> int:
        assert self.away, "an engine starts on GPUs that the policy has"
        await super().restore()
        restarted, self.lost = len(self.lost), set()
        if restarted:
            self.memory[1] = "awake"
        return restarted

    def phase(self, name: str, total: int | None = None) -> Any:
        self.phases.append(name)
        return super().phase(name, total)


def train(recorder: Turning, config: RunConfig | None = None, *, limit_gib: float = 8.0) -> Turning:
    """Two steps, after the start as `megarl train` makes it."""
    residual = ResidualMemory([[0], [1]], limit_bytes=limit_gib * GIB)
    turns = SharedGpus(recorder, recorder, recorder, residual=residual)  # type: ignore[arg-type]

    async def start() -> None:
        await turns.start()
        await turns.to_publication()

    asyncio.run(start())
    recorder.calls.clear()
    run(config or make_config(), recorder, turns=turns)
    return recorder


def publish(version: int) -> list[str]:
    return [f"receive {version}", f"publish {version}", f"adopt {version}"]


def anew(version: int) -> list[str]:
    """Over new connections, with every engine; to the end."""
    return ["restore", "sleep", "wake weights", "connect", *publish(version), "wake caches"]


SAMPLE = ["generate", "reward", "sleep"]
UPDATE = ["take back", "old_logp", "update 0", "update 1"]
TRAIN = [*SAMPLE, *UPDATE, "give way"]
START = ["start up: weights of step 0", "wake weights", *publish(0), "wake caches"]


def step(version: int) -> list[str]:
    return [*TRAIN, "wake weights", *publish(version), "wake caches"]


def calls_of(recorder: Turning) -> list[str]:
    """Without what is written."""
    return [call for call in recorder.calls if not call.startswith(("commit", "export"))]


def test_a_step_is_a_turn_of_each() -> None:
    recorder = train(Turning())
    assert calls_of(recorder) == [*START, *step(1), *step(2)]
    assert recorder.phases == [
        "wake", "wake",  # megarl train's own, then the first weights
        *["wake"],
        *2 * ["generate", "reward", "sleep", "old_logp", "update", "publish", "wake", "wake", "write_wait"],
    ]  # fmt: skip


def test_engines_that_have_gpus_of_their_own_are_asked_for_no_turn() -> None:
    recorder = Recorder()
    run(make_config(), recorder)
    assert not {"sleep", "wake weights", "wake caches", "give way", "take back"} & set(recorder.calls)


LOST = EngineLost("rollout rank 1 died: its process is gone")
STALLED = TransportError("version 1: engine 0 worker 0 stalled")
RECOVERED: dict[str, tuple[dict[str, dict[int, Exception]], list[str]]] = {
    # In the first step, whose calls are counted from those of the start.
    "dies when it is put to sleep": ({"sleep": {2: LOST}}, [*TRAIN, "wake weights", *anew(1)]),
    "dies asleep": ({"wake_weights": {3: LOST}}, [*TRAIN, "wake weights", *anew(1)]),
    "publication fails in the middle": (
        {"publish": {2: STALLED}},
        [*TRAIN, "wake weights", "receive 1", "publish 1", *anew(1)],
    ),
    "dies installing": ({"adopt": {2: LOST}}, [*TRAIN, "wake weights", *publish(1), *anew(1)]),
    "does not wake": ({"wake_cache": {2: LOST}}, [*TRAIN, "wake weights", *publish(1), "wake caches", *anew(1)]),
    "publication fails, then another engine": (
        {"publish": {2: STALLED}, "wake_cache": {2: LOST}},
        [*TRAIN, "wake weights", "receive 1", "publish 1", *anew(1), *anew(1)],
    ),
}


@pytest.mark.parametrize("fault", RECOVERED)
def test_a_fault_costs_a_publication_and_nothing_else(fault: str) -> None:
    faults, first = RECOVERED[fault]
    recorder = train(Turning(**faults))
    assert calls_of(recorder) == [*START, *first, *step(2)]
    assert [len(record.rollouts) for record in recorder.records] == [4, 4]
    assert recorder.requests == train(Turning()).requests, "each is sampled once"
    lost = [to_values(record.metrics).get("rollout/restarts", 0.0) for record in recorder.records]
    assert lost == [float(LOST in [error for of in faults.values() for error in of.values()]), 0.0]


def test_an_engine_lost_while_it_samples_samples_again_when_all_have_the_weights() -> None:
    recorder = train(Turning(generate={1: LOST}))
    sampled = ["generate some", *anew(0)]
    assert calls_of(recorder) == [*START, *sampled, *step(1), *step(2)]
    assert [len(record.rollouts) for record in recorder.records] == [4, 4]


ENDS: dict[str, tuple[dict[str, dict[int, Exception]], str, list[str]]] = {
    "the policy's memory is not taken back": (
        {"take_back": {1: RuntimeError("policy rank 0: CUDA out of memory")}},
        "^policy rank 0: CUDA out of memory$",
        [*SAMPLE, "take back"],
    ),
    "the policy's memory is not given": (
        {"give_way": {2: RuntimeError("policy rank 0: no host memory")}},
        "^policy rank 0: no host memory$",
        TRAIN,
    ),
    "two publications fail": (
        {"publish": {2: STALLED, 3: STALLED}},
        "(?s)^version 1: .*That ended a second attempt; the first ended because version 1",
        [*TRAIN, "wake weights", "receive 1", "publish 1", "restore", "sleep", "wake weights", "connect",
         "receive 1", "publish 1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ENDS)
def test_what_ends_the_run_says_so_and_no_engine_samples_any_more(fault: str) -> None:
    faults, text, calls = ENDS[fault]
    recorder = Turning(**faults)
    with pytest.raises((RuntimeError, TransportError), match=text):
        train(recorder)
    assert calls_of(recorder) == [*START, *calls]
    assert recorder.reached == [], "no step counts as finished"
    assert "awake" not in recorder.memory


def test_what_sleeping_engines_keep_is_measured_and_bounded() -> None:
    recorder = train(Turning())
    assert [to_values(record.metrics)["memory/asleep_max_gib"] for record in recorder.records] == [4.0, 4.0]


class Growing(Turning):
    """Engine 1 keeps 3 GiB more with every sleep."""

    async def sleep(self) -> list[list[int] | None]:
        self.keeps[1] += 3 * GIB
        return await super().sleep()


def test_an_engine_that_keeps_too_much_ends_the_run_before_the_policy_takes_its_turn() -> None:
    recorder = Growing()
    with pytest.raises(ResidualMemoryError, match=r"engine 1 sleeps and keeps 13\.0 GiB of the GPU of policy rank 1"):
        train(recorder, limit_gib=12.0)
    assert calls_of(recorder)[-1] == "sleep"


def test_residual_memory_follows_the_policys_allocator() -> None:
    residual = ResidualMemory([[0, 1]], limit_bytes=5 * GIB)
    residual.note_alone([[3 * GIB, 4 * GIB]])
    residual.note_policy([GpuUse(used=13 * GIB, reserved=8 * GIB), GpuUse(used=14 * GIB, reserved=8 * GIB)])
    assert residual.check([[13 * GIB, 14 * GIB]]) == 4 * GIB
    # A gigabyte more is the policy's, half of one the engine's.
    residual.note_policy([GpuUse(used=15 * GIB, reserved=9 * GIB), GpuUse(used=16 * GIB, reserved=9 * GIB)])
    assert residual.check([[14 * GIB + GIB // 2, 15 * GIB]]) == 4 * GIB
    with pytest.raises(
        ResidualMemoryError, match=r"engine 0 .* keeps 5\.5 GiB .* rank 0, .* when it slept first it was 3\.0"
    ):
        residual.check([[16 * GIB + GIB // 2, 15 * GIB]])
    assert residual.check([None]) is None, "of an engine that was lost nothing is known"


def test_without_gpus_there_is_nothing_to_measure() -> None:
    residual = ResidualMemory([[0], [1]], limit_bytes=0)
    residual.note_alone([None, None])
    residual.note_policy([None, None])
    assert residual.check([None, None]) is None
