"""Which of several failures is told, and in whose name. Needs no Ray: an actor is what its handle answers."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions

from megarl.config.base import ConfigError
from megarl.reshard.signals import TransportError
from megarl.runtime import failures, workers
from megarl.runtime.failures import Limit, WorkerDied, WorkerFailed, call, call_together
from megarl.runtime.workers import Worker, WorkerName

WAIT_S = 0.2
ENOUGH = Limit(60.0, "enough")


class Handle:
    """Of an actor that answers, or is silent; notes when it is killed."""

    def __init__(self, *, silent: bool) -> None:
        self.answer, self.stacks, self._silent = self, self, silent

    def remote(self, *_: Any) -> Any:
        return asyncio.sleep(60.0 if self._silent else 0.0)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The actors that are killed; and no test waits for five seconds."""
    killed: list[Any] = []
    monkeypatch.setattr(failures, "BLAME_WAIT_S", WAIT_S)
    monkeypatch.setattr(workers, "STACKS_WAIT_S", WAIT_S)
    monkeypatch.setattr(ray, "kill", killed.append)
    return killed


def make_worker(rank: int, *, silent: bool = False, log: Path = Path("/nowhere")) -> Worker:
    return Worker(WorkerName("policy", rank, log / f"policy-{rank}.log"), Handle(silent=silent))


async def outcome(after_s: float, result: Any) -> Any:
    """What a reference gives after a while."""
    await asyncio.sleep(after_s)
    if isinstance(result, BaseException):
        raise result
    return result


def raised(error: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("work", "traceback", error)


def gone() -> ray.exceptions.RayActorError:
    return ray.exceptions.RayActorError(error_msg="\n  The actor's process is gone.\n  more")


PEER_GONE = raised(RuntimeError("Connection closed by peer"))


def together(*plans: tuple[float, Any], silent: tuple[int, ...] = ()) -> Any:
    """Results of `call_together` on workers that end after so many seconds with a result or an error."""

    async def scenario() -> Any:
        workers = [make_worker(rank, silent=rank in silent) for rank in range(len(plans))]
        calls = [
            call(worker, outcome(*plan), doing="make an update", limit=ENOUGH)
            for worker, plan in zip(workers, plans, strict=True)
        ]
        return await asyncio.wait_for(call_together(workers, calls), 30.0)

    return asyncio.run(scenario())


def blamed(*plans: tuple[float, Any], silent: tuple[int, ...] = ()) -> str:
    with pytest.raises(WorkerFailed) as caught:
        together(*plans, silent=silent)
    return str(caught.value).splitlines()[0]


def test_results_are_in_the_workers_order() -> None:
    assert together((0.2, "a"), (0.0, "b"), (0.1, "c")) == ["a", "b", "c"]


@pytest.mark.parametrize("dead", [0, 1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_a_dead_worker_is_to_blame_whoever_failed_first(dead: int, first: bool) -> None:
    """Its peers raise because it is gone, before Ray says that it is, or after."""
    plans = [
        (0.0 if (rank == dead) is first else WAIT_S / 2, gone() if rank == dead else PEER_GONE) for rank in range(3)
    ]
    assert blamed(*plans) == f"policy rank {dead} died: The actor's process is gone."


def test_of_failures_without_a_death_the_first_rank_is_told() -> None:
    """A rank that raises a moment later, because the first left, is not."""
    assert blamed((0.0, raised(ValueError("NaN"))), (WAIT_S / 2, PEER_GONE)) == "policy rank 0 raised ValueError: NaN"


def test_a_silent_worker_is_to_blame_and_killed(short_wait: list[Any]) -> None:
    text = blamed((60.0, None), (0.0, PEER_GONE), (60.0, None), silent=(2,))
    assert text.startswith("policy rank 2 did not make an update: it has not answered for 0.2 s, and another worker")
    assert len(short_wait) == 1


def test_a_busy_worker_is_not_to_blame(short_wait: list[Any]) -> None:
    assert blamed((60.0, None), (0.0, PEER_GONE)).startswith("policy rank 1 raised RuntimeError: Connection closed")
    assert short_wait == []


def test_a_death_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the others, which wait for the dead one for long."""

    async def seconds() -> float:
        loop = asyncio.get_running_loop()
        before = loop.time()
        workers = [make_worker(0), make_worker(1)]
        calls: list[Coroutine[Any, Any, Any]] = [
            call(workers[0], outcome(60.0, None), doing="wait", limit=ENOUGH),
            call(workers[1], outcome(0.0, gone()), doing="wait", limit=ENOUGH),
        ]
        with pytest.raises(WorkerDied):
            await call_together(workers, calls)
        return loop.time() - before

    monkeypatch.setattr(failures, "BLAME_WAIT_S", 20.0)
    assert asyncio.run(seconds()) < 10.0


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (raised(ConfigError("policy.master_port is in use")), ConfigError, "policy.master_port is in use"),
        (raised(TransportError("no room")), TransportError, "policy rank 3: no room"),
        (raised(KeyError("x")), WorkerFailed, "policy rank 3 raised KeyError: 'x'"),
        (gone(), WorkerDied, "policy rank 3 died: The actor's process is gone."),
    ],
)
def test_what_a_call_makes_of_a_failure(error: Exception, kind: type[Exception], text: str, tmp_path: Path) -> None:
    (tmp_path / "policy-3.log").write_text("\n".join(f"line {at}" for at in range(100)))

    async def scenario() -> None:
        await call(make_worker(3, log=tmp_path), outcome(0.0, error), doing="start", limit=ENOUGH)

    with pytest.raises(kind) as caught:
        asyncio.run(scenario())
    first, *rest = str(caught.value).splitlines()
    assert first == text
    if kind in (WorkerFailed, WorkerDied):  # with the end of its log
        assert rest == [f"End of {tmp_path / 'policy-3.log'}:", *(f"  | line {at}" for at in range(70, 100))]


def with_a_worker(act: Callable[[Worker], Coroutine[Any, Any, None]]) -> str:
    async def scenario() -> None:
        await act(make_worker(0))

    with pytest.raises(WorkerFailed) as caught:
        asyncio.run(scenario())
    return str(caught.value).splitlines()[0]


def test_a_limit_is_named() -> None:
    async def act(worker: Worker) -> None:
        await call(worker, outcome(60.0, None), doing="start", limit=Limit(0.1, "policy.start_timeout_s"))

    assert with_a_worker(act) == "policy rank 0 did not start within 0.1 s (policy.start_timeout_s)"


def test_a_worker_that_was_given_up_fails_calls_of_then_and_later() -> None:
    """Also one that is done at the same moment: its process is not there any more."""

    async def act(worker: Worker) -> None:
        asyncio.get_running_loop().call_later(0.1, worker.give_up, "has not answered for 2 s")
        with pytest.raises(WorkerDied):
            await call(worker, outcome(60.0, None), doing="start", limit=None)
        worker.give_up("is given up again")
        await call(worker, outcome(0.0, 1), doing="start", limit=None)

    text = "policy rank 0 did not start: it has not answered for 2 s; its process never answered"
    assert with_a_worker(act) == text


def test_a_worker_is_at_it_until_it_has_answered() -> None:
    """Not only while it is waited for: what it was doing when a limit ended the wait is what is asked afterwards."""

    async def scenario() -> list[list[str]]:
        late, failed, gone_away = (make_worker(rank) for rank in range(3))
        seen = []
        answering = asyncio.ensure_future(call(late, outcome(0.1, 1), doing="start", limit=ENOUGH))
        await asyncio.sleep(0.01)
        seen.append(list(late.busy_with))
        await answering
        await asyncio.sleep(0.01)
        seen.append(list(late.busy_with))
        plans = [(late, outcome(60.0, 1)), (failed, outcome(0.0, PEER_GONE)), (gone_away, outcome(0.0, gone()))]
        for worker, reply in plans:
            with pytest.raises(WorkerFailed):
                await call(worker, reply, doing="make an update", limit=Limit(0.2, "a limit"))
        await asyncio.sleep(0.01)
        assert [worker.ended for worker in (late, failed, gone_away)] == [False, False, True]
        return [*seen, *(list(worker.busy_with) for worker in (late, failed, gone_away))]

    assert asyncio.run(scenario()) == [["start"], [], ["make an update"], [], []]
