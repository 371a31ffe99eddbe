"""Buckets through files in /dev/shm: one copy in, one copy out per receiver, no kernel socket between.

Two slots of `bucket_bytes` alternate. A slot's memory is reserved when its file is made, so a /dev/shm that is too
small is an error at start, not a bus error in mid-run. The sender holds an advisory lock on each file and unlinks it
as soon as every receiver has it mapped: from then on the kernel frees the memory when the processes end, however they
end. A file left by a sender that was killed before that has no lock holder, and the next sender removes it.
"""

import fcntl
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.reshard.signals import TransportError

DIRECTORY = Path("/dev/shm")
_PREFIX = "megarl-weights-"
NUM_SLOTS = 2


def remove_stale_files() -> list[Path]:
    """Remove bucket files whose sender is gone (their lock is free). Returns what was removed."""
    removed = []
    for path in DIRECTORY.glob(f"{_PREFIX}*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # alive, gone already, or another user's
        removed.append(path)
    return removed


class _SharedFile:
    """A locked, fully reserved file of `num_bytes`, mapped as a uint8 tensor."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self.num_bytes = path, num_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        weakref.finalize(self, path.unlink, missing_ok=True)  # also runs at interpreter exit
        try:
            os.posix_fallocate(self._descriptor, 0, num_bytes)
        except OSError as error:
            self.close()
            free = os.statvfs(DIRECTORY)
            raise TransportError(
                f"{DIRECTORY} has no room for a bucket of {num_bytes / 2**20:.0f} MiB "
                f"({free.f_bavail * free.f_frsize / 2**20:.0f} MiB free, {NUM_SLOTS} are needed): make it larger, "
                'lower rollout.publish.bucket_mib, or set rollout.publish.transport = "broadcast"'
            ) from error
        self.buffer = torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8)

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.unlink()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SharedMemorySender:
    """The sender's side: slots to pack into. Nothing needs pushing: receivers read the mapped files."""

    collective = False

    def __init__(self, *, token: str, bucket_bytes: int) -> None:
        remove_stale_files()
        self._token = token
        self._num_files = 0
        self._slots: list[_SharedFile] = []
        try:
            for _ in range(NUM_SLOTS):
                self._slots.append(self._new_file(bucket_bytes))
        except BaseException:
            self.close()
            raise

    def _new_file(self, num_bytes: int) -> _SharedFile:
        path = DIRECTORY / f"{_PREFIX}{self._token}-{self._num_files}"
        self._num_files += 1
        return _SharedFile(path, num_bytes)

    def where(self, slot: int) -> dict[str, Any]:
        """What a receiver needs to find the slot's bytes."""
        return {"slot": slot, "path": str(self._slots[slot].path), "capacity": self._slots[slot].num_bytes}

    def buffer(self, slot: int, num_bytes: int) -> Tensor:
        """The slot's buffer, in a larger file if `num_bytes` asks for one."""
        if self._slots[slot].num_bytes < num_bytes:
            larger = self._new_file(num_bytes)
            self._slots[slot].close()
            self._slots[slot] = larger
        return self._slots[slot].buffer

    def connected(self) -> None:
        """All receivers have the files mapped: no name is needed any more."""
        for slot in self._slots:
            slot.unlink()

    def push(self, slot: int, num_bytes: int) -> None:
        """Nothing to do: the bytes are where receivers read them."""

    def settle(self, slot: int) -> None:
        """Every receiver has copied the slot's bytes, so a file made for an oversized tensor is mapped by all."""
        self._slots[slot].unlink()

    def close(self) -> None:
        """Unlink what is still linked and drop the locks; mapped memory goes with its last user."""
        for slot in self._slots:
            slot.close()
        self._slots = []


class SharedMemoryReceiver:
    """A receiver's side: maps the sender's files and copies out of them."""

    collective = False

    def __init__(self, *, slots: list[dict[str, Any]], device: torch.device) -> None:
        """Raises TransportError when the sender's files are not on this node."""
        self._device = device
        self._mapped: dict[int, tuple[str, Tensor]] = {}
        for where in slots:
            self._map(where)

    def _map(self, where: dict[str, Any]) -> Tensor:
        slot, path = where["slot"], where["path"]
        if self._mapped.get(slot, ("", None))[0] != path:
            if not Path(path).exists():
                raise TransportError(
                    f"the sender's bucket file {path} is not on this node: the shared_memory transport needs policy "
                    'rank 0 and every engine on one node with one /dev/shm; set rollout.publish.transport = "broadcast"'
                )
            buffer = torch.from_file(path, shared=True, size=where["capacity"], dtype=torch.uint8)
            self._mapped[slot] = (path, buffer)
        return self._mapped[slot][1]

    def take(self, where: dict[str, Any], num_bytes: int) -> Tensor:
        """[num_bytes] uint8 on the receiver's device: a copy that later buckets do not touch."""
        return self._map(where)[:num_bytes].to(self._device, copy=True)

    def close(self) -> None:
        self._mapped = {}
