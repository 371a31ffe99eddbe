"""One rank, or ranks as threads that meet in `Reduce`, so that tests of many layouts need no processes."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class SingleRank:
    """The whole mini-batch is here."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def max(self, values: Tensor) -> Tensor:
        return values


class ThreadReduce:
    """`Reduce` of one thread; all threads of a `Meeting` must call in the same order with equal shapes."""

    def __init__(self, meeting: "Meeting", rank: int) -> None:
        self._meeting, self._rank = meeting, rank
        self.calls: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def sum(self, values: Tensor) -> Tensor:
        return self._exchange("sum", values).sum(0)

    def max(self, values: Tensor) -> Tensor:
        return self._exchange("max", values).amax(0)

    def _exchange(self, name: str, values: Tensor) -> Tensor:
        self.calls.append((name, tuple(values.shape), values.dtype))
        return self._meeting.exchange(self._rank, values.clone())


class Meeting:
    """Where the threads exchange values; two barriers per exchange."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._values: list[Any] = [None] * size

    def exchange(self, rank: int, values: Tensor) -> Tensor:
        self._values[rank] = values
        self._barrier.wait()
        together = torch.stack(self._values)  # fails where shapes differ
        self._barrier.wait()
        return together

    def abort(self) -> None:
        self._barrier.abort()


def on_ranks(
    function: Callable[[Any, ThreadReduce], Any], shares: Sequence[Any]
) -> tuple[list[Any], list[list[tuple[str, tuple[int, ...], torch.dtype]]]]:
    """`function(share, reduce)` on one thread per share: results, and the collectives of each rank."""
    meeting = Meeting(len(shares))
    reduces = [ThreadReduce(meeting, rank) for rank in range(len(shares))]

    def run(share: Any, reduce: ThreadReduce) -> Any:
        try:
            return function(share, reduce)
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(len(shares)) as pool:
        futures = [pool.submit(run, share, reduce) for share, reduce in zip(shares, reduces, strict=True)]
        return [future.result() for future in futures], [reduce.calls for reduce in reduces]


def raised_on_ranks(function: Callable[[Any, ThreadReduce], Any], shares: Sequence[Any]) -> list[str]:
    """The ValueError's text of every rank; fails where a rank raised none (or waited in vain for the others)."""

    def caught(share: Any, reduce: ThreadReduce) -> str:
        try:
            function(share, reduce)
        except ValueError as error:
            return str(error)
        raise AssertionError("no ValueError")

    return on_ranks(caught, shares)[0]
