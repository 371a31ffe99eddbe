"""A publication is tried twice, the second time over new connections."""

import asyncio
from collections.abc import Sequence

import pytest

from megarl.controller.publication import publish_weights
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineLost
from megarl.telemetry.metrics import Metrics, to_values
from tests.controller.fakes import Recorder, make_config, make_parts


class Stumbling(Recorder):
    """Fails its first `times` publications, and to connect again where told so."""

    def __init__(self, times: int, *, reconnects: bool = True) -> None:
        super().__init__()
        self._times, self._reconnects = times, reconnects

    async def publish_weights(self, version: int) -> Metrics:
        await super().publish_weights(version)
        self._times -= 1
        if self._times >= 0:
            raise TransportError(f"version {version}: engine 0 worker 1 stalled")
        return {}

    async def connect(self) -> None:
        await super().connect()
        if not self._reconnects:
            raise RuntimeError("rollout rank 0 died: out of memory")


def publish(recorder: Recorder) -> Metrics:
    return asyncio.run(publish_weights(7, make_parts(make_config(), recorder)))


ANEW = ["restore", "connect", "receive 7", "publish 7", "adopt 7"]


def test_engines_install_after_the_policy_has_published() -> None:
    recorder = Recorder()
    assert to_values(publish(recorder)) == {"timing_s/publish_install": 0.5}
    assert recorder.calls == ["receive 7", "publish 7", "adopt 7"]


def test_a_failed_publication_is_tried_again_over_new_connections() -> None:
    recorder = Stumbling(1)
    publish(recorder)
    assert recorder.calls == ["receive 7", "publish 7", *ANEW]


def test_a_second_failure_ends_it_with_both_causes() -> None:
    with pytest.raises(TransportError, match=r"(?s)^version 7: engine 0 .*the first ended because version 7: engine 0"):
        publish(Stumbling(2))


def test_a_dead_worker_is_named_first() -> None:
    recorder = Stumbling(1, reconnects=False)
    with pytest.raises(TransportError, match=r"(?s)^rollout rank 0 died: .*the first ended because version 7"):
        publish(recorder)
    assert recorder.calls[-1] == "connect"


class Scripted(Recorder):
    """Its publications end, one after the other, as the script says; every engine that it lost comes back."""

    def __init__(self, script: Sequence[Exception | None], *, back: Exception | None = None) -> None:
        super().__init__()
        self._script, self._back, self._lost = list(script), back, 0

    async def adopt_weights(self, version: int) -> Metrics:
        await super().adopt_weights(version)
        error = self._script.pop(0)
        self._lost += isinstance(error, EngineLost)
        if error is not None:
            raise error
        return {}

    async def restore(self) -> int:
        await super().restore()
        if self._back is not None:
            raise self._back
        restarted, self._lost = self._lost, 0
        return restarted


LOST = EngineLost("rollout rank 1 died: gone")
STALLED = TransportError("version 7: stalled")


def publish_scripted(*script: Exception | None, back: Exception | None = None) -> tuple[list[str], Metrics]:
    """What was asked of the parts, and what it cost the step."""
    recorder = Scripted(script, back=back)
    parts = make_parts(make_config(), recorder)
    asyncio.run(publish_weights(7, parts))
    return recorder.calls, parts.engine_losses.collect()


def test_an_engine_that_is_lost_is_back_before_the_next_attempt() -> None:
    calls, losses = publish_scripted(LOST, None)
    assert calls == [*ANEW[2:], *ANEW]
    assert to_values(losses)["rollout/restarts"] == 1


def test_lost_engines_do_not_count_as_failed_publications() -> None:
    """Nor does one that failed because an engine was lost, whether or not it is known."""
    calls, losses = publish_scripted(LOST, STALLED, LOST, STALLED, None)
    assert calls == [*ANEW[2:], *ANEW, *ANEW, *ANEW, *ANEW]
    assert to_values(losses)["rollout/restarts"] == 2
    with pytest.raises(TransportError, match=r"(?s)^version 7: stalled.* because version 7: stalled$"):
        publish_scripted(LOST, STALLED, STALLED)


def test_an_engine_that_does_not_come_back_is_told_as_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^rollout rank 1 died: again$"):
        publish_scripted(LOST, back=RuntimeError("rollout rank 1 died: again"))


def test_connections_that_new_engines_have_not_are_not_used() -> None:
    recorder = Recorder()
    asyncio.run(publish_weights(7, make_parts(make_config(), recorder), anew=True))
    assert recorder.calls == ANEW


def test_a_step_in_which_no_engine_was_lost_says_nothing_of_it() -> None:
    assert publish_scripted(None)[1] == {}
