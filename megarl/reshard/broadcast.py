"""Buckets by broadcast from the sender: gloo between hosts' memories, NCCL between GPUs.

The group has the sender as rank 0 and receiver r as rank r + 1. It is built over the sender's own TCPStore and is
independent of the process's default group, so trainer and vLLM each keep theirs. A broadcast starts only after every
receiver said it is ready for that bucket, so a slow or failed receiver is found by its message, not inside a
collective.
"""

import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.signals import TransportError

_CHUNK_BYTES = 1 << 30  # counts stay far below int32, which some backends use
NUM_SLOTS = 2


def _local_address(host: str, port: int) -> str:
    """The address of the interface that reaches host:port. Nothing is sent: connect() on UDP only picks a route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


class Broadcaster:
    """One process's end of the group; `rank` 0 sends, the others receive."""

    collective = True

    def __init__(
        self, store: dist.Store, *, host: str, port: int, rank: int, size: int, timeout_s: float, device: torch.device
    ) -> None:
        """Returns when all `size` processes have come. Raises TransportError when they do not within `timeout_s`."""
        self._rank, self._device = rank, device
        self._slots: dict[int, Tensor] = {}
        self._works: dict[int, list[dist.Work]] = {}
        self._timeout_s = timeout_s
        timeout = timedelta(seconds=timeout_s)
        try:
            if device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = timeout
                self._group: Any = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
            else:
                options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
                options._timeout = timeout
                options._devices = [dist.ProcessGroupGloo.create_device(hostname=_local_address(host, port))]
                self._group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, options)
        except RuntimeError as error:
            raise TransportError(
                f"rank {rank} of the {size} in the weight broadcast could not join within {timeout_s:g} s: {error}"
            ) from error

    def _broadcast(self, data: Tensor) -> list[dist.Work]:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return [
            self._group.broadcast([data[start : start + _CHUNK_BYTES]], options)
            for start in range(0, data.numel(), _CHUNK_BYTES)
        ]

    def _finish(self, works: list[dist.Work]) -> None:
        try:
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise TransportError(f"broadcast rank {self._rank} lost its peers: {error}") from error

    # the sender's side

    def where(self, slot: int) -> dict[str, Any]:  # noqa: ARG002 - shared memory names the slot's file here
        return {}

    def buffer(self, slot: int, num_bytes: int) -> Tensor:
        """The slot's buffer of at least `num_bytes`, on the broadcast's device."""
        if slot not in self._slots or self._slots[slot].numel() < num_bytes:
            self._slots[slot] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return self._slots[slot]

    def connected(self) -> None:
        """Nothing to do: the group exists once the constructor returned."""

    def push(self, slot: int, num_bytes: int) -> None:
        """Start sending; every receiver is ready."""
        self._works[slot] = self._broadcast(self._slots[slot][:num_bytes])

    def settle(self, slot: int) -> None:
        """Wait until the slot's bytes have left it."""
        self._finish(self._works.pop(slot, []))

    # a receiver's side

    def take(self, where: dict[str, Any], num_bytes: int) -> Tensor:  # noqa: ARG002 - see `where`
        """[num_bytes] uint8: a buffer of the caller's own."""
        data = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._finish(self._broadcast(data))
        return data

    def close(self) -> None:
        self._slots, self._works = {}, {}
        self._group = None
