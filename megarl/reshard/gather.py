"""The reference path: whole Hugging Face tensors assembled on one rank from Megatron's shards.

Every rank computes the same plan from the weight table, so nothing but weights is exchanged. A bucket holds whole HF
tensors; for each bucket a rank sends rank 0 one buffer with its boxes, in the plan's order. Boxes that several ranks
hold (norms, tied embeddings) are sent by the first of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.models.table import Box, ParameterEntry, Piece
from megarl.reshard.regions import parameter_key


@dataclass(frozen=True, slots=True)
class Part:
    """One box of an HF tensor and where rank `rank` keeps it."""

    rank: int
    parameter: str
    """Key of the rank's parameter (`parameter_key`)."""
    piece: Piece


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """Buckets of HF tensors with the parts each is made of."""

    shapes: Mapping[str, tuple[int, ...]]
    buckets: tuple[tuple[str, ...], ...]
    parts: Mapping[str, tuple[Part, ...]]
    dtype: torch.dtype


def plan_gather(
    entries: Mapping[int, Sequence[ParameterEntry]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    bucket_bytes: int,
    dtype: torch.dtype,
) -> GatherPlan:
    """Plan from each rank's table entries; ValueError when the ranks together do not hold every tensor."""
    seen: set[Box] = set()
    parts: dict[str, list[Part]] = {name: [] for name in shapes}
    for rank in sorted(entries):
        for entry in entries[rank]:
            for piece in entry.pieces:
                if piece.box not in seen:
                    seen.add(piece.box)
                    parts[piece.box.tensor].append(Part(rank, parameter_key(entry.chunk, entry.name), piece))
    for name, shape in shapes.items():
        held = sum(part.piece.box.num_elements for part in parts[name])
        if held != math.prod(shape):
            raise ValueError(f"{name}: the ranks hold {held} elements, the tensor has {math.prod(shape)}")
    return GatherPlan(
        shapes=dict(shapes),
        buckets=_fill_buckets(shapes, bucket_bytes // dtype.itemsize),
        parts={name: tuple(items) for name, items in parts.items()},
        dtype=dtype,
    )


def gather_hf_tensors(local: Mapping[str, Tensor], plan: GatherPlan, *, rank: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) on rank 0, nothing elsewhere; all senders of the plan must exhaust the iterator.

    `local` has this rank's parameters by `parameter_key`. Memory on rank 0: one bucket of full tensors and the largest
    sender's buffer.
    """
    for bucket in plan.buckets:
        if rank == 0:
            yield from _assemble(local, plan, bucket)
            continue
        mine = [part for name in bucket for part in plan.parts[name] if part.rank == rank]
        if mine:
            values = torch.cat([_region(local, part).to(plan.dtype).reshape(-1) for part in mine])
            dist.send(values.to(sent_from(values.device)), dst=0)


def _assemble(local: Mapping[str, Tensor], plan: GatherPlan, bucket: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    device = next(iter(local.values())).device
    full = {name: torch.empty(plan.shapes[name], dtype=plan.dtype, device=device) for name in bucket}
    by_rank: dict[int, list[Part]] = {}
    for name in bucket:
        for part in plan.parts[name]:
            by_rank.setdefault(part.rank, []).append(part)
    for sender, parts in sorted(by_rank.items()):
        targets = [full[part.piece.box.tensor][part.piece.box.slices] for part in parts]
        if sender == 0:
            for part, target in zip(parts, targets, strict=True):
                target.copy_(_region(local, part))
            continue
        count = sum(target.numel() for target in targets)
        buffer = torch.empty(count, dtype=plan.dtype, device=sent_from(device))
        dist.recv(buffer, src=sender)
        for target, values in zip(targets, buffer.split([target.numel() for target in targets]), strict=True):
            target.copy_(values.view(target.shape))
    yield from full.items()


def sent_from(device: torch.device) -> torch.device:
    """Where a message of a rank on `device` must lie: gloo takes a GPU's address for one of the host's."""
    return torch.device("cpu") if dist.get_backend() == "gloo" else device


def _region(local: Mapping[str, Tensor], part: Part) -> Tensor:
    return local[part.parameter][part.piece.slices]


def _fill_buckets(shapes: Mapping[str, tuple[int, ...]], max_elements: int) -> tuple[tuple[str, ...], ...]:
    buckets: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if not buckets or size > room:
            buckets.append([])
            room = max_elements
        buckets[-1].append(name)
        room -= size
    return tuple(tuple(bucket) for bucket in buckets)
