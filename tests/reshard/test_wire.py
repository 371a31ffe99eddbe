"""Waiting for a message on a GPU, whose backend's own wait returns at once; a stand-in has its work."""

import time

import pytest
import torch

from megarl.reshard.signals import TransportError
from megarl.reshard.wire import Flight


class Work:
    """As NCCL's: done after a while, or never, or with an error."""

    def __init__(self, *, done_after_s: float = 0.0, error: str | None = None) -> None:
        self._done_s = time.monotonic() + done_after_s
        self._error = error
        self.waited = False

    def wait(self) -> None:
        self.waited = True

    def is_completed(self) -> bool:
        assert self.waited, "the stream has to wait for it too"
        if self._error is not None:
            raise RuntimeError(self._error)
        return time.monotonic() >= self._done_s


def flight(work: Work, *, within_s: float) -> Flight:
    return Flight(work, torch.empty(0), 3, lambda: "receiving version 7 from engine 1", poll_for_s=within_s)


def test_it_lands_when_the_work_is_done() -> None:
    started = time.monotonic()
    arriving = flight(Work(done_after_s=0.2), within_s=30.0)
    arriving.land()
    assert time.monotonic() - started >= 0.2
    arriving.land()  # it has


def test_a_peer_that_sends_nothing_is_named_within_the_limit() -> None:
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"receiving version 7 from engine 1: not done within 0\.3 s") as caught:
        flight(Work(done_after_s=600.0), within_s=0.3).land()
    assert time.monotonic() - started < 10.0
    assert caught.value.peer == 3


def test_an_error_of_the_backend_is_the_cause() -> None:
    with pytest.raises(TransportError, match="from engine 1: NCCL error: remote process exited") as caught:
        flight(Work(error="NCCL error: remote process exited"), within_s=30.0).land()
    assert caught.value.peer == 3
