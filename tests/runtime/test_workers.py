"""Calls to real Ray actors whose process works, is stopped, or takes too long."""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from megarl.runtime.cluster import start_worker
from megarl.runtime.failures import Limit, WorkerDied, WorkerFailed, call, call_together
from megarl.runtime.ray_start import start_local_ray
from megarl.runtime.roster import Roster
from megarl.runtime.workers import Watch, Worker, WorkerName
from megarl.telemetry.heartbeat import IDLE, LOST
from megarl.telemetry.process_mark import ProcessMark
from tests.runtime.actors import Busy, Sleeper

ENOUGH = Limit(600.0, "enough")
PATIENCE_S = 90.0
"""Several times what anything here takes: the machine may be busy."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    start_local_ray(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


async def make_workers(count: int, kind: type = Sleeper, role: str = "policy", **options: int) -> list[Worker]:
    names = [WorkerName(role, rank, Path(f"/nowhere/{role}-{rank}.log")) for rank in range(count)]
    workers = [start_worker(name, kind, {"num_cpus": 0, **options}, {}) for name in names]
    for worker in workers:
        assert await worker.answers(within_s=120.0)
    return workers


def stop(worker: Worker) -> int:
    assert worker.mark is not None
    os.kill(worker.mark.pid, signal.SIGSTOP)
    return worker.mark.pid


async def await_death(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.1)


def started(worker: Worker, method: Callable[..., Any], seconds: float) -> Any:
    return call(worker, worker.ask(method, seconds), doing="sleep", limit=ENOUGH)


def test_long_work_is_left_alone_and_has_one_thread(cluster: None) -> None:
    """An actor's calls share a thread: what PyTorch keeps per thread, a CUDA device first of all, stays."""

    async def scenario() -> list[int]:
        (worker,) = await make_workers(1)
        watch = Watch([worker], silence_s=1.0)
        threads = [await started(worker, Sleeper.sleep, 4.0), await started(worker, Sleeper.sleep, 0.0)]
        watch.end()
        assert not worker.lost.done()
        return threads

    first, second = asyncio.run(scenario())
    assert first == second


def test_a_stopped_worker_ends_its_call_by_name_and_is_killed(cluster: None) -> None:
    async def scenario() -> tuple[str, int]:
        (worker,) = await make_workers(1)
        watch = Watch([worker], silence_s=2.0)
        pending = asyncio.ensure_future(started(worker, Sleeper.sleep, 600.0))
        await asyncio.sleep(0.5)
        pid = stop(worker)
        with pytest.raises(WorkerDied) as caught:
            await asyncio.wait_for(pending, PATIENCE_S)
        await await_death(pid)
        watch.end()
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(started(worker, Sleeper.sleep, 0.0), PATIENCE_S)  # and so do later calls
        return str(caught.value), pid

    text, pid = asyncio.run(scenario())
    assert text.startswith(
        f"policy rank 0 did not sleep: it has not answered for 2 s (cluster.worker_silence_s); its process {pid} on "
    )
    assert text.splitlines()[0].endswith("is stopped (by SIGSTOP)")


def test_requests_that_ray_holds_back_do_not_silence_a_worker(cluster: None) -> None:
    async def scenario() -> None:
        (worker,) = await make_workers(1, Busy, max_concurrency=2)
        pending = [asyncio.ensure_future(started(worker, Busy.sleep, 600.0)) for _ in range(5)]
        await asyncio.sleep(1.0)
        assert await worker.answers(within_s=3.0)
        worker.give_up("is not needed any more")
        await asyncio.gather(*pending, return_exceptions=True)

    asyncio.run(scenario())


def test_an_event_loop_that_is_held_up_is_noticed(cluster: None) -> None:
    async def scenario() -> None:
        (worker,) = await make_workers(1, Busy)
        await started(worker, Busy.sleep, 0.0)
        pending = asyncio.ensure_future(started(worker, Busy.block, 600.0))
        await asyncio.sleep(0.5)
        assert not await worker.answers(within_s=3.0)
        worker.give_up("has not answered")
        with pytest.raises(WorkerDied, match=r"its process .* is alive .* but answers nothing"):
            await pending

    asyncio.run(scenario())


def test_a_call_has_a_limit(cluster: None) -> None:
    async def scenario() -> None:
        (worker,) = await make_workers(1)
        asked = worker.ask(Sleeper.sleep, 600.0)
        limit = Limit(1.0, "policy.call_timeout_s")
        with pytest.raises(WorkerFailed, match=r"policy rank 0 did not sleep within 1 s \(policy.call_timeout_s\)"):
            await call(worker, asked, doing="sleep", limit=limit)
        worker.give_up("is not needed any more")

    asyncio.run(scenario())


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_peer_is_to_blame_and_not_who_waited_for_it(silent: int, cluster: None) -> None:
    """Without a watch that had noticed: a collective's timeout may be shorter than cluster.worker_silence_s."""

    async def scenario() -> str:
        workers = await make_workers(2)
        stop(workers[silent])
        calls = [
            started(worker, Sleeper.sleep if rank == silent else Sleeper.fail, 1.0)
            for rank, worker in enumerate(workers)
        ]
        with pytest.raises(WorkerDied) as caught:
            await asyncio.wait_for(call_together(workers, calls), PATIENCE_S)
        return str(caught.value)

    assert asyncio.run(scenario()).startswith(f"policy rank {silent} did not sleep: it has not answered for 5 s, and")


def test_a_busy_peer_is_not_to_blame(cluster: None) -> None:
    async def scenario() -> str:
        workers = await make_workers(2)
        calls = [started(workers[0], Sleeper.sleep, 600.0), started(workers[1], Sleeper.fail, 0.5)]
        with pytest.raises(WorkerFailed) as caught:
            await asyncio.wait_for(call_together(workers, calls), PATIENCE_S)
        workers[0].give_up("is not needed any more")
        return str(caught.value)

    assert asyncio.run(scenario()).startswith("policy rank 1 raised RuntimeError: the peer did not come")


def test_busy_workers_tell_their_stacks(cluster: None) -> None:
    """Of a main thread that waits in C, of an event loop that is held up, of a task that waits in it."""

    async def scenario() -> list[str]:
        roster = Roster()
        (sleeper,), busy = await make_workers(1), await make_workers(2, Busy, role="rollout")
        await asyncio.gather(*(started(worker, Busy.sleep, 0.0) for worker in busy))
        pending = [
            asyncio.ensure_future(started(worker, method, 600.0))
            for worker, method in zip([sleeper, *busy], [Sleeper.sleep, Busy.block, Busy.sleep], strict=True)
        ]
        await asyncio.sleep(1.0)
        for worker in (*busy, sleeper):
            roster.add(worker)
        told = await roster.tell_stacks()
        for worker in roster.workers:
            worker.give_up("is not needed any more")
        await asyncio.gather(*pending, return_exceptions=True)
        return told

    sleeping, blocked, waiting = asyncio.run(scenario())
    assert re.search(r"actors\.py:\d+ in sleep\n", sleeping)
    assert re.search(r"actors\.py:\d+ in block\n", blocked)
    # The one that waits is a task: what it awaits first, then who awaits it.
    assert re.search(r"tasks\.py:\d+ in sleep\n.*actors\.py:\d+ in sleep", waiting)


def test_a_worker_that_holds_the_interpreters_lock_tells_its_stacks(cluster: None) -> None:
    async def scenario() -> str:
        (worker,) = await make_workers(1)
        await worker.ask(Sleeper.hear)
        pending = asyncio.ensure_future(started(worker, Sleeper.hold, 600.0))
        await asyncio.sleep(1.0)
        text = await worker.tell_stacks([])
        worker.give_up("is not needed any more")
        await asyncio.gather(pending, return_exceptions=True)
        return text

    assert re.search(r"actors\.py\", line \d+ in hold\n", asyncio.run(scenario()))


def test_a_peer_asks_one_on_its_machine_for_whom_the_driver_cannot(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for workers of another node: here the driver takes them to be elsewhere."""

    async def scenario() -> tuple[str, str]:
        stuck, peer = await make_workers(2)
        await stuck.ask(Sleeper.hear)
        pending = asyncio.ensure_future(started(stuck, Sleeper.hold, 600.0))
        await asyncio.sleep(1.0)
        monkeypatch.setattr(ProcessMark, "standing", lambda _: "elsewhere")
        texts = await stuck.tell_stacks([stuck, peer]), await stuck.tell_stacks([stuck])
        monkeypatch.undo()
        for worker in (stuck, peer):
            worker.give_up("is not needed any more")
        await asyncio.gather(pending, return_exceptions=True)
        return texts

    asked, alone = asyncio.run(scenario())
    assert " in hold" in asked
    assert alone.endswith("can be asked for its stacks")


def test_what_a_stopped_worker_was_doing_is_known_when_it_is_killed(cluster: None) -> None:
    """The watch asks before it kills; afterwards the roster tells what was told then."""

    async def scenario() -> tuple[list[str], list[str], str]:
        roster = Roster()
        (worker,) = await make_workers(1)
        roster.add(worker)
        phases = [roster.beats(step=3)[0].phase]
        watch = Watch([worker], silence_s=2.0)
        pending = asyncio.ensure_future(started(worker, Sleeper.sleep, 600.0))
        await asyncio.sleep(0.5)
        (beat,) = roster.beats(step=3)
        assert (beat.role, beat.rank, beat.step) == ("policy", 0, 3)
        assert worker.mark is not None
        assert (beat.node, beat.pid) == (worker.mark.host, worker.mark.pid)
        assert 0.4 < beat.for_s < 60.0
        assert roster.pids == [worker.mark.pid]
        phases.append(beat.phase)
        stop(worker)
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(pending, PATIENCE_S)
        watch.end()
        (late,) = roster.beats(step=3)
        assert late.silent_s >= 2.0
        await await_death(worker.mark.pid)
        assert roster.pids == []
        return [*phases, late.phase], await roster.tell_stacks(), str(worker.mark.pid)

    phases, told, _ = asyncio.run(scenario())
    assert phases == [IDLE, "sleep", LOST]
    assert told == ["it is stopped (by SIGSTOP): a stopped process tells nothing until it goes on"]
