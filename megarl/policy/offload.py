"""What a policy rank gives back of its memory while engines use its GPU, and takes again.

    gradients   the buffers that Megatron's DDP reduces: dropped, zeros when they are back
    optimizer   both moments and, where the model's weights are a copy in bfloat16, the float32 main weights
    reference   the frozen weights of the KL

The last two are moved to host memory, pinned beside a GPU, and come back bit for bit. What is released is the storage
behind the tensors: every tensor and view that Megatron or the optimizer holds stays the same object, at another address
when it is back. Nothing is released before all of it is copied, and a host copy stays until the next one replaces it,
so a failure on the way loses nothing and may be tried again.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.parallel.pinned import PinnedMemory, PinningError

_ALIGN = 512
"""Bytes; every dtype may be read from there."""


class OffloadError(RuntimeError):
    """Memory could not be given back, or not be taken again; what was there is still there, here or on the host."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A storage, and where its copy lies in the host's memory."""

    tensor: Tensor
    """One that lies in the storage, which it keeps alive."""
    start: int
    num_bytes: int

    @property
    def storage(self) -> torch.UntypedStorage:
        return self.tensor.untyped_storage()


class Offload:
    """The storages of one rank that may be away. States: here -> (give) away -> (take) here ..."""

    def __init__(
        self, *, dropped: Iterable[Tensor], moved: Mapping[str, Iterable[Tensor]], device: torch.device
    ) -> None:
        """dropped: their values are not needed again. moved: by what they are for, for messages. device: of all."""
        self._device = device
        self._dropped = [_Place(tensor, 0, tensor.untyped_storage().nbytes()) for tensor in _distinct(dropped)]
        self._moved: dict[int, _Place] = {}
        self._names: dict[int, str] = {}
        total = 0
        for name, tensors in moved.items():
            for tensor in _distinct(tensors):
                size = tensor.untyped_storage().nbytes()
                key = _key(tensor)
                if key not in self._moved:
                    self._moved[key], self._names[key] = _Place(tensor, total, size), name
                    total += -(-size // _ALIGN) * _ALIGN
        if shared := [
            name
            for name, place in zip(self._names.values(), self._moved.values(), strict=True)
            if any(_key(place.tensor) == _key(gone.tensor) for gone in self._dropped)
        ]:
            raise ValueError(f"{sorted(set(shared))} would be moved and dropped at once: they share memory")
        self._total = total
        self._host: Tensor | None = None
        self._pinned: PinnedMemory | None = None
        self.away = False

    @property
    def moved_bytes(self) -> int:
        """Host memory that it takes."""
        return self._total

    @property
    def dropped_bytes(self) -> int:
        return sum(place.num_bytes for place in self._dropped)

    def give(self) -> None:
        """Copy to the host, then release. Nothing where it is away. OffloadError: all of it is still here."""
        if self.away:
            return
        host = self._room()
        try:
            with _copying(self._device):
                for place in self._moved.values():
                    _twin(host, place).copy_(_bytes_of(place), non_blocking=True)
        except RuntimeError as error:
            raise OffloadError(f"{self._describe()} could not be copied to the host: {error}") from error
        self.away = True
        for place in (*self._dropped, *self._moved.values()):
            place.storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def take(self) -> None:
        """All of it is here again; gradients are zeros. Nothing where it is here.

        OffloadError where the GPU has no room: what had come is away again, and this may be tried once more.
        """
        if not self.away:
            return
        host = self._room()
        places = (*self._moved.values(), *self._dropped)
        try:
            for place in places:
                place.storage.resize_(place.num_bytes)
            with _copying(self._device):
                for place in self._moved.values():
                    _bytes_of(place).copy_(_twin(host, place), non_blocking=True)
            for place in self._dropped:
                _bytes_of(place).zero_()
        except RuntimeError as error:
            for place in places:
                place.storage.resize_(0)
            raise OffloadError(
                f"{self._describe()} could not be taken back to {self._device}: {error}. It still lies in host memory; "
                "engines that sleep keep too much, or rollout.memory_fraction and policy.tokens_per_micro_batch leave "
                "too little (`megarl plan` shows both in turns)"
            ) from error
        self.away = False

    def present(self, tensor: Tensor) -> Tensor:
        """The tensor, or the same values in host memory while its storage is away. Not to be written to."""
        place = self._moved.get(_key(tensor)) if self.away else None
        if place is None:
            return tensor
        assert self._host is not None
        twin = _twin(self._host, place).view(tensor.dtype)
        return twin.as_strided(tensor.shape, tensor.stride(), twin.storage_offset() + tensor.storage_offset())

    def close(self) -> None:
        """Let the host's memory go, where nothing lies in it. Idempotent."""
        if self._pinned is not None:
            self._pinned.close()
        self._host = self._pinned = None

    def _room(self) -> Tensor:
        """The host's memory, made the first time. OffloadError where there is none."""
        if self._host is None:
            try:
                host = torch.empty(self._total, dtype=torch.uint8)
                self._pinned = PinnedMemory(host)
            except (RuntimeError, PinningError) as error:
                raise OffloadError(
                    f"no host memory for {self._describe()} of this policy rank ({error}); every rank of a node needs "
                    "as much. Free host memory, or move less (cluster.offload)"
                ) from error
            self._host = host
        return self._host

    def _describe(self) -> str:
        sizes = dict.fromkeys(self._names.values(), 0)
        for key, place in self._moved.items():
            sizes[self._names[key]] += place.num_bytes
        return " and ".join(f"{size / 2**20:.0f} MiB of {name}" for name, size in sizes.items()) or "gradients"


def _key(tensor: Tensor) -> int:
    """Of its storage, the same for all views and over all sizes that the storage takes."""
    return tensor.untyped_storage()._cdata


def _distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """One of each storage."""
    yield from {_key(tensor): tensor for tensor in tensors}.values()


def _bytes_of(place: _Place) -> Tensor:
    """[bytes] of the whole storage."""
    return torch.empty(0, dtype=torch.uint8, device=place.tensor.device).set_(place.storage)


def _twin(host: Tensor, place: _Place) -> Tensor:
    return host[place.start : place.start + place.num_bytes]


@contextmanager
def _copying(device: torch.device) -> Iterator[None]:
    """Copies queued in the block run in a stream of their own, after what the GPU was asked before, and have ended
    after it."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
