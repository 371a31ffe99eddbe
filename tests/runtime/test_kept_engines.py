"""A pool of engines that were there before the run, or stay after it. Needs no Ray."""

from pathlib import Path
from typing import Any

import pytest

from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineError, EngineLost
from tests.runtime.simulated_engines import Engine, Stage, gone, play, raised


class Kept:
    """In the place of a keeper: engines that are there, and what was said of them."""

    def __init__(self, *engines: Engine) -> None:
        self.engines, self.has_engines = engines, bool(engines)
        self.marks: dict[str, str] = {}
        self.doubts: list[str] = []
        self.trusted = False

    def options(self, index: int) -> dict[str, Any]:
        return {"name": f"rollout-{index}"}

    def find_engine(self, index: int) -> Engine:
        return self.engines[index]

    def begin_log(self, path: Path) -> Path:
        return path

    def end_logs(self) -> None: ...

    def check_shape(self, *_: Any) -> None: ...

    def doubt(self, reason: str) -> None:
        self.doubts.append(reason)

    def trust(self, *_: Any) -> bool:
        self.trusted = not self.doubts
        return self.trusted


def test_a_pool_finds_engines_that_answer_and_samples_after_a_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        keeper = Kept(Engine(0), Engine(1))
        at = Stage(monkeypatch, (), (), keeper=keeper)
        assert at.pool.has_other_weights
        await at.meet()
        assert [engine.calls for engine in keeper.engines] == [["check", "connect"]] * 2
        with pytest.raises(RuntimeError, match="have adopted no weights since they were started"):
            await at.generate()
        await at.pool.adopt_weights(0)
        assert not at.pool.has_other_weights
        assert len(await at.generate()) == 8
        await at.pool.leave()
        await at.pool.close()
        assert keeper.trusted
        assert [engine.calls[-1] for engine in keeper.engines] == ["disconnect"] * 2

    play(scenario())


def test_a_pool_that_starts_engines_leaves_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        keeper = Kept()
        at = Stage(monkeypatch, (Engine(0), Engine(1)), (), keeper=keeper)
        assert not at.pool.has_other_weights
        await at.meet()
        assert len(await at.generate()) == 8
        await at.pool.leave()
        await at.pool.close()
        assert keeper.trusted
        assert [engine.calls[-1] for engine in at.started] == ["disconnect"] * 2

    play(scenario())


def test_a_pool_that_is_not_left_ends_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        keeper = Kept(Engine(0), Engine(1))
        at = Stage(monkeypatch, (), (), keeper=keeper)
        await at.meet()
        await at.pool.close()
        assert not keeper.trusted
        assert all(engine.calls[-1] == "shutdown" for engine in keeper.engines)

    play(scenario())


def test_after_an_engine_was_lost_nobody_else_has_any(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        keeper, heir = Kept(Engine(0), Engine(1, generate=gone())), Engine(1)
        at = Stage(monkeypatch, (), (heir,), keeper=keeper)
        await at.meet()
        await at.pool.adopt_weights(0)
        with pytest.raises(EngineLost):
            await at.generate()
        assert await at.pool.restore() == 1
        await at.pool.adopt_weights(0)
        assert len(await at.generate()) == 8
        await at.pool.leave()
        await at.pool.close()
        assert keeper.doubts
        assert not keeper.trusted
        assert [engine.calls[-1] for engine in (keeper.engines[0], heir)] == ["shutdown"] * 2

    play(scenario())


@pytest.mark.parametrize(
    "error", [EngineError("engine 1 cannot go on"), TransportError("engine 1 worker 0: it is stuck")], ids=repr
)
def test_an_engine_that_fails_when_the_run_is_over_fails_no_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        keeper, silent = Kept(), Engine(1)
        at = Stage(monkeypatch, (Engine(0), silent), (Engine(1),), keeper=keeper)
        await at.meet()
        silent.faults["disconnect"] = raised(error)
        await at.pool.leave()
        await at.pool.close()
        assert not keeper.trusted
        assert "shutdown" in at.started[0].calls

    play(scenario())
