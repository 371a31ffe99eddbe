"""A publication is tried twice, the second time over new connections."""

import asyncio

import pytest

from megarl.controller.publication import publish_weights
from megarl.reshard.signals import TransportError
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


def test_engines_install_after_the_policy_has_published() -> None:
    recorder = Recorder()
    assert to_values(publish(recorder)) == {"timing_s/publish_install": 0.5}
    assert recorder.calls == ["receive 7", "publish 7", "adopt 7"]


def test_a_failed_publication_is_tried_again_over_new_connections() -> None:
    recorder = Stumbling(1)
    publish(recorder)
    assert recorder.calls == ["receive 7", "publish 7", "connect", "receive 7", "publish 7", "adopt 7"]


def test_a_second_failure_ends_it_with_both_causes() -> None:
    with pytest.raises(TransportError, match=r"(?s)^version 7: engine 0 .*the first ended because version 7: engine 0"):
        publish(Stumbling(2))


def test_a_dead_worker_is_named_first() -> None:
    recorder = Stumbling(1, reconnects=False)
    with pytest.raises(TransportError, match=r"(?s)^rollout rank 0 died: .*the first ended because version 7"):
        publish(recorder)
    assert recorder.calls[-1] == "connect"
