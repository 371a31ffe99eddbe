"""The heartbeat of a run, and what is told when it fails. Needs no Ray: an actor is what its handle answers."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megarl.reshard.signals import TransportError
from megarl.runtime import heart as heart_module
from megarl.runtime.failures import Limit, WorkerFailed, call
from megarl.runtime.heart import Heart
from megarl.runtime.workers import Worker, WorkerName
from megarl.telemetry.heartbeat import IDLE, Heartbeat, read_heartbeat
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.spans import Spans


class Run:
    """As much of a run directory as a heart writes to."""

    def __init__(self, path: Path) -> None:
        self.logs, self.heartbeat_path = path / "logs", path / "heartbeat.json"
        self.logs.mkdir()


def make_handle(rank: int) -> Any:
    def answer(value: Any) -> Any:
        return SimpleNamespace(remote=lambda *_: asyncio.sleep(0.0, result=value))

    return SimpleNamespace(answer=answer(ProcessMark.of(os.getpid())), stacks=answer(f"stack of {rank}"))


def make_heart(path: Path, spans: Spans, **more: Any) -> tuple[Heart, list[Worker[Any]]]:
    """With policy ranks 0 and 1 and an engine, added in another order."""
    heart = Heart(Run(path), spans, steps=300, **more)  # type: ignore[arg-type]
    names = [("rollout", 0), ("policy", 1), ("policy", 0)]
    workers = [
        heart.roster.add(Worker(WorkerName(role, rank, path / f"{role}-{rank}.log"), make_handle(rank)))
        for role, rank in names
    ]
    return heart, workers[::-1]


def test_a_heartbeat_says_what_each_process_does(tmp_path: Path) -> None:
    async def scenario() -> list[Heartbeat]:
        spans = Spans()
        heart, (first, *_) = make_heart(tmp_path, spans)
        looks = [heart.look()]
        assert await first.answers(within_s=30.0)
        with spans.draw("policy ranks", lane="a"), spans.draw("vLLM engines", lane="b"):
            looks.append(heart.look())
        with spans.measure("step", step=7):
            looks.append(heart.look())
            with spans.measure("update"):
                first.asked_to("make an update")
                await asyncio.sleep(0.05)
                first.asked_to("write its part of a checkpoint")
                looks.append(heart.look())
                first.has_done("make an update")
                first.has_done("write its part of a checkpoint")
        looks.append(heart.look())
        return looks

    before, starting, in_step, in_update, after = asyncio.run(scenario())
    assert [(one.role, one.rank) for one in before.processes] == [
        ("controller", 0),
        ("policy", 0),
        ("policy", 1),
        ("rollout", 0),
    ]
    assert {one.phase for one in before.processes} == {IDLE}
    assert (before.step, before.steps) == (0, 300)
    assert (before.driver.node, before.driver.pid) == (socket.gethostname(), os.getpid())
    assert (before.processes[1].node, before.processes[1].pid) == ("", None)
    assert (starting.driver.phase, starting.step) == ("policy ranks, vLLM engines", 0)
    assert (starting.processes[1].node, starting.processes[1].pid) == (socket.gethostname(), os.getpid())
    assert (in_step.driver.phase, in_step.driver.step) == ("step", 7)
    assert in_update.driver.phase == "update"
    assert [one.phase for one in in_update.processes[1:]] == [
        "make an update, write its part of a checkpoint",
        IDLE,
        IDLE,
    ]
    assert in_update.processes[1].for_s >= 0.05  # of the first of the two
    assert {one.step for one in in_update.processes} == {7}
    assert (after.driver.phase, after.step, after.processes[1].phase) == (IDLE, 7, IDLE)
    assert after.processes[1].for_s < 0.05


def test_the_file_is_written_again_and_again_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart_module, "BEAT_S", 0.05)

    async def scenario() -> list[Heartbeat]:
        heart, _ = make_heart(tmp_path, spans := Spans())
        seen: dict[float, Heartbeat] = {}
        async with heart.beating(), asyncio.timeout(30.0):
            while len(seen) < 3:
                await asyncio.sleep(0.01)
                if (found := read_heartbeat(tmp_path / "heartbeat.json")) is not None:
                    seen[found.written_s] = found
            with spans.measure("step", step=9):
                pass
            entered = spans.measure("step", step=10)
            entered.__enter__()
        last = read_heartbeat(tmp_path / "heartbeat.json")
        assert last is not None
        return [*seen.values(), last]

    *beats, last = asyncio.run(scenario())
    assert [one.step for one in beats] == [0, 0, 0]
    assert (last.step, last.driver.phase) == (10, "step")


def test_a_disk_that_takes_nothing_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heart_module, "BEAT_S", 0.01)

    async def scenario() -> None:
        heart, _ = make_heart(tmp_path / "gone", Spans())
        (tmp_path / "gone" / "logs").rmdir()
        (tmp_path / "gone").rmdir()
        async with heart.beating():
            await asyncio.sleep(0.2)

    (tmp_path / "gone").mkdir()
    asyncio.run(scenario())
    assert caplog.text.count("heartbeat.json is not written: ") == 1


def explained(
    path: Path, work: Callable[[list[Worker[Any]]], Awaitable[object]], **more: Any
) -> tuple[BaseException, list[Path]]:
    """(what came out of the block, the files of stacks)."""

    async def scenario() -> None:
        spans = Spans()
        heart, workers = make_heart(path, spans, **more)
        with spans.measure("step", step=12), spans.measure("update"):
            async with heart.explaining():
                await work(workers)

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        asyncio.run(scenario())
    return caught.value, sorted((path / "logs").iterdir())


def test_a_limit_that_is_exceeded_tells_phases_and_stacks_of_all(tmp_path: Path) -> None:
    async def work(workers: list[Worker[Any]]) -> None:
        limits = [Limit(60.0, "enough"), Limit(0.2, "policy.call_timeout_s")]
        await asyncio.gather(
            *(
                call(worker, asyncio.sleep(60.0), doing="make an update", limit=limit)
                for worker, limit in zip(workers, limits, strict=False)
            )
        )

    before = time.monotonic()
    error, (file,) = explained(tmp_path, work)
    assert time.monotonic() - before < 30.0
    assert isinstance(error, WorkerFailed)
    phases, stacks = error.__notes__[0].splitlines()
    assert phases == (
        "Phases of all processes: controller 0: update for 0 s; policy 0 to 1: make an update for 0 s; "
        "rollout 0: idle for 0 s"
    )
    assert stacks == f"Their stacks: {file}"
    text = file.read_text()
    assert text.startswith("policy rank 1 did not make an update within 0.2 s (policy.call_timeout_s)\n\nprocess ")
    told = text.split("\n\n")
    assert told[2].startswith(f"controller rank 0\nprocess {os.getpid()}\n")
    assert " in scenario\n" in told[2]
    assert told[3:] == ["policy rank 0\nstack of 0", "policy rank 1\nstack of 1", "rollout rank 0\nstack of 0\n"]


@pytest.mark.parametrize(
    ("error", "tells"),
    [
        (TransportError("policy rank 0: no answer"), True),
        (ValueError("not a worker's"), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_who_is_told_of(error: BaseException, tells: bool, tmp_path: Path) -> None:
    async def work(_: list[Worker[Any]]) -> None:
        raise error

    caught, files = explained(tmp_path, work)
    assert caught is error
    assert (len(files), hasattr(error, "__notes__")) == ((1, True) if tells else (0, False))


def test_a_stop_that_is_overdue_is_explained(tmp_path: Path) -> None:
    async def work(_: list[Worker[Any]]) -> None:
        raise asyncio.CancelledError

    error, (file,) = explained(tmp_path, work, overdue=lambda: True)
    assert error.__notes__[0].endswith(f"Their stacks: {file}")
    assert file.read_text().startswith("it was not done in time\n")


def test_a_full_disk_does_not_hide_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    async def work(_: list[Worker[Any]]) -> None:
        raise WorkerFailed("policy rank 0 died")

    monkeypatch.setattr(heart_module, "write_stacks", full)
    error, files = explained(tmp_path, work)
    assert str(error) == "policy rank 0 died"
    assert files == []
    assert error.__notes__[0].endswith("(not written: [Errno 28] No space left on device)")
