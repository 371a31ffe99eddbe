"""Point-to-point transfer of tensors between the peers of a publication: gloo from host memory, NCCL from a GPU's.

The group is built over the session's own sealed store and is independent of the process's default group, so policy and
vLLM each keep theirs. Every peer names itself and works through its messages in one order (see plan.py); between two
peers messages arrive in the order they were sent.

A wait that outlasts the timeout, or a peer whose process ends, breaks the group for good: a new session is needed.
"""

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.signals import TransportError, waited_for


def local_address(host: str, port: int) -> str:
    """The address of the interface that reaches host:port. Nothing is sent: connect() on UDP only picks a route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


_POLL_S = (0.0001, 0.005)
"""First and longest pause between two looks at a message on a GPU."""
_NEVER = timedelta(days=365)


class Flight:
    """A tensor on its way; `land` waits for it. Keeps the tensor's memory alive until then."""

    def __init__(
        self, work: Any, tensor: Tensor, peer: int, describe: Callable[[], str], *, poll_for_s: float | None = None
    ) -> None:
        """poll_for_s: for work whose own `wait` returns before it is done, and keeps the stream waiting alone."""
        self._work, self._tensor, self._peer, self._describe = work, tensor, peer, describe
        self._poll_for_s = poll_for_s

    def land(self) -> None:
        """Raises TransportError when the peer is gone or too slow."""
        work, self._work = self._work, None
        if work is None:
            return
        try:
            work.wait()
            done = self._poll_for_s is None or _completes(work, within_s=self._poll_for_s)
        except RuntimeError as error:
            raise waited_for(self._peer, f"{self._describe()}: {_cause(error)}") from error
        if not done:
            raise waited_for(self._peer, f"{self._describe()}: not done within {self._poll_for_s:g} s")


def _completes(work: Any, *, within_s: float) -> bool:
    pause_s, longest_s = _POLL_S
    deadline = time.monotonic() + within_s
    while not work.is_completed():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)
    return True


class Wire:
    """One peer's end of the group."""

    def __init__(
        self,
        store: dist.Store,
        *,
        address: str,
        peer: int,
        num_peers: int,
        timeout_s: float,
        device: torch.device,
        describe_peer: Callable[[int], str],
    ) -> None:
        """Returns when all peers have come. store: sealed, so that addresses come from peers only.

        Raises TransportError when the peers do not come within `timeout_s`.
        """
        self.device = device
        self._store: dist.Store | None = store  # NCCL asks it at a pair's first message, through C++ alone
        self._describe_peer = describe_peer
        self._poll_for_s = timeout_s if device.type == "cuda" else None
        try:
            if device.type == "cuda":
                nccl = dist.ProcessGroupNCCL.Options()
                # A limit of NCCL's own ends the process, from another thread; `Flight` has the limit instead.
                nccl._timeout = _NEVER
                self._group: Any = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), peer, num_peers, nccl)
            else:
                gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
                gloo._timeout = timedelta(seconds=timeout_s)
                gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
                self._group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), peer, num_peers, gloo)
        except RuntimeError as error:
            raise TransportError(
                f"{describe_peer(peer)} could not meet the other {num_peers - 1} peers of the weight transfer within "
                f"{timeout_s:g} s: {_cause(error)}"
            ) from error

    def send(self, tensor: Tensor, peer: int, *, what: str) -> Flight:
        """Start sending a contiguous tensor on the wire's device; it must not change before `land`."""
        return self._start("send", tensor, peer, f"sending {what} to")

    def receive(self, tensor: Tensor, peer: int, *, what: str) -> Flight:
        """Start receiving into a contiguous tensor on the wire's device."""
        return self._start("recv", tensor, peer, f"receiving {what} from")

    def _start(self, verb: str, tensor: Tensor, peer: int, doing: str) -> Flight:
        def describe() -> str:
            return f"{doing} {self._describe_peer(peer)}"

        if self._group is None:
            raise TransportError(f"{describe()}: this end is closed")
        try:
            work = getattr(self._group, verb)([tensor], peer, 0)
            return Flight(work, tensor, peer, describe, poll_for_s=self._poll_for_s)
        except RuntimeError as error:
            raise waited_for(peer, f"{describe()}: {_cause(error)}") from error

    def close(self) -> None:
        """Leave the group: peers that wait for this one fail at once. What is still on its way on a GPU is given up."""
        if self._group is not None and self.device.type == "cuda":
            self._group.abort()
        self._group = self._store = None


def _cause(error: RuntimeError) -> str:
    """The first line of a backend's message, without the place in its source and its general advice."""
    line = str(error).strip().splitlines()[0].split(". This is typically", 1)[0]
    return line.split("] ", 1)[1] if line.startswith("[") and "] " in line else line
