"""Sampling and changes of weights keep each other out, and nothing begins on an engine that cannot go on."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from megarl.rollout.engine_state import EngineState
from megarl.rollout.failures import EngineError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def ready() -> EngineState:
    state = EngineState("engine 3")
    state.open()
    return state


async def settle() -> None:
    """Let every task come as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Diary:
    """What happened, in order; a sampler or an update goes on when it is told."""

    def __init__(self, state: EngineState) -> None:
        self.lines: list[str] = []
        self._state = state
        self._go: dict[str, asyncio.Event] = {}

    def sample(self, name: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self._sample(name))

    def update(self, name: str, error: Exception | None = None) -> "asyncio.Task[None]":
        return asyncio.create_task(self._update(name, error))

    def go_on(self, name: str) -> None:
        self._go[name].set()

    async def _sample(self, name: str) -> None:
        async with self._state.sampling():
            await self._stay(name)

    async def _update(self, name: str, error: Exception | None) -> None:
        async with self._state.updating():
            self.lines.append(f"{name} waits")
            await self._state.await_idle()
            if error is not None:
                self._state.fail(str(error))
                raise error
            await self._stay(name)

    async def _stay(self, name: str) -> None:
        self.lines.append(f"{name} begins")
        self._go[name] = asyncio.Event()
        await self._go[name].wait()
        self.lines.append(f"{name} ends")


def test_an_update_waits_for_those_that_sample_and_holds_back_later_ones() -> None:
    async def story() -> None:
        diary = Diary(state := ready())
        tasks = [diary.sample("first"), diary.sample("second")]
        await settle()
        tasks.append(diary.update("update"))
        await settle()
        assert state.now == "updating"
        tasks.append(diary.sample("late"))
        await settle()
        diary.go_on("first")
        await settle()
        assert "update begins" not in diary.lines
        diary.go_on("second")
        await settle()
        assert diary.lines[-2:] == ["second ends", "update begins"]
        assert "late begins" not in diary.lines
        diary.go_on("update")
        await settle()
        assert diary.lines[-2:] == ["update ends", "late begins"]
        assert state.now == "ready"
        diary.go_on("late")
        await asyncio.gather(*tasks)

    run(story())


def test_updates_follow_each_other() -> None:
    async def story() -> None:
        diary = Diary(ready())
        tasks = [diary.update("one"), diary.update("two")]
        await settle()
        assert diary.lines == ["one waits", "one begins"]
        diary.go_on("one")
        await settle()
        assert diary.lines[2:] == ["one ends", "two waits", "two begins"]
        diary.go_on("two")
        await asyncio.gather(*tasks)

    run(story())


def test_after_a_failed_update_who_waited_is_told_its_reason() -> None:
    async def story() -> None:
        diary = Diary(state := ready())
        running = diary.sample("running")
        await settle()
        update = diary.update("update", ValueError("half of it is new"))
        await settle()
        waiting = diary.sample("waiting")
        await settle()
        diary.go_on("running")
        with pytest.raises(ValueError, match="half of it is new"):
            await update
        with pytest.raises(EngineError, match=r"engine 3 cannot sample: it is broken \(half of it is new\)"):
            await waiting
        await running
        state.fail("what followed from it")
        assert (state.now, state.reason) == ("broken", "half of it is new")

    run(story())


def test_a_sampler_that_fails_no_longer_holds_off_updates() -> None:
    async def story() -> None:
        state = ready()
        with pytest.raises(ValueError, match="bad"):
            async with state.sampling():
                raise ValueError("bad")
        assert state.now == "ready"
        await state.await_idle()

    run(story())


def test_who_waits_is_refused_when_the_engine_is_closed() -> None:
    async def story() -> None:
        diary = Diary(state := ready())
        updating = diary.update("update")
        await settle()
        waiting = diary.sample("waiting")
        await settle()
        await state.close()
        with pytest.raises(EngineError, match=r"engine 3 cannot sample: it is closed$"):
            await waiting
        diary.go_on("update")
        await updating
        assert state.now == "closed"  # the end of an update does not open it again
        state.fail("its process died")
        assert state.now == "closed"

    run(story())


def test_nothing_begins_before_the_start() -> None:
    state = EngineState("engine 3")
    with pytest.raises(EngineError, match=r"engine 3 cannot connect: it is new$"):
        state.check_ready("connect")
