"""Point-to-point transfer of tensors between the peers of a publication: gloo from host memory, NCCL from a GPU's.

The group is built over the session's own sealed store and is independent of the process's default group, so policy and
vLLM each keep theirs. Every peer names itself and works through its messages in one order (see plan.py); between two
peers messages arrive in the order they were sent.

A wait that outlasts the timeout, or a peer whose process ends, breaks the group for good: a new session is needed.
"""

import socket
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


class Flight:
    """A tensor on its way; `land` waits for it. Keeps the tensor's memory alive until then."""

    def __init__(self, work: Any, tensor: Tensor, peer: int, describe: Callable[[], str]) -> None:
        self._work, self._tensor, self._peer, self._describe = work, tensor, peer, describe

    def land(self) -> None:
        """Raises TransportError when the peer is gone or too slow."""
        work, self._work = self._work, None
        if work is None:
            return
        try:
            work.wait()
        except RuntimeError as error:
            raise waited_for(self._peer, f"{self._describe()}: {_cause(error)}") from error


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
        timeout = timedelta(seconds=timeout_s)
        try:
            if device.type == "cuda":
                nccl = dist.ProcessGroupNCCL.Options()
                nccl._timeout = timeout
                self._group: Any = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), peer, num_peers, nccl)
            else:
                gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
                gloo._timeout = timeout
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
            return Flight(getattr(self._group, verb)([tensor], peer, 0), tensor, peer, describe)
        except RuntimeError as error:
            raise waited_for(peer, f"{describe()}: {_cause(error)}") from error

    def close(self) -> None:
        """Leave the group: peers that wait for this one fail at once."""
        self._group = self._store = None


def _cause(error: RuntimeError) -> str:
    """The first line of a backend's message, without the place in its source and its general advice."""
    line = str(error).strip().splitlines()[0].split(". This is typically", 1)[0]
    return line.split("] ", 1)[1] if line.startswith("[") and "] " in line else line
