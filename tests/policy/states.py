"""A policy rank's state for tests: kept in memory, put together over all ranks, saved as a run saves it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.checkpoint.manifest import Manifest, describe_config
from megarl.checkpoint.run_checkpoint import PendingCheckpoint
from megarl.config.run import RunConfig
from megarl.policy.optimizer import settle_weights
from megarl.policy.state import RankState
from megarl.policy.worker import MegatronWorker
from megarl.runtime.saving import Saving, merge_written, numbers_of, outcome


@dataclass(frozen=True)
class Kept:
    """Copies of everything that a rank holds."""

    tensors: list[Tensor]
    updates: int
    step: int | None


def keep_state(worker: MegatronWorker) -> Kept:
    settle_weights(worker._ddp)
    state = worker._state
    return Kept([piece.tensor.clone() for piece in state.held()], worker._updates, state.optimizer_step)


def restore_state(worker: MegatronWorker, kept: Kept) -> None:
    """The same rank as it was."""
    settle_weights(worker._ddp)
    state = worker._state
    for piece, tensor in zip(state.held(), kept.tensors, strict=True):
        piece.tensor.copy_(tensor)
    for share in state.shares().values():
        share.moments.step = kept.step or 0
    worker._updates = kept.updates
    worker._held, worker._scores, worker._differentiated = (), [], None


def assemble(worker: MegatronWorker) -> dict[str, Tensor] | None:
    """Every tensor of the global space, on rank 0. What several ranks hold must be equal, and each element be held."""
    mine = [(piece.key, piece.shape, piece.offsets, piece.tensor.cpu().clone()) for piece in worker._state.held()]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    if dist.get_rank():
        return None
    whole: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for key, shape, offsets, tensor in (piece for pieces in gathered for piece in pieces):
        target = whole.setdefault(key, torch.zeros(shape, dtype=tensor.dtype))
        known = seen.setdefault(key, torch.zeros(shape, dtype=torch.bool))
        where = tuple(slice(low, low + size) for low, size in zip(offsets, tensor.shape, strict=True))
        assert torch.equal(target[where][known[where]], tensor[known[where]]), f"ranks differ in {key} at {offsets}"
        target[where], known[where] = tensor, True
    assert all(bool(known.all()) for known in seen.values()), [key for key, known in seen.items() if not known.all()]
    return whole


def hash_elements(whole: dict[str, Tensor]) -> dict[str, str]:
    """By key: dtype, shape and the bits of every element in order."""
    return {
        key: f"{tensor.dtype} {list(tensor.shape)} "
        + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, tensor in sorted(whole.items())
    }


def saved_keys(state: RankState) -> list[str]:
    return sorted({piece.key for piece in state.saved()})


def save_checkpoint(worker: MegatronWorker, config: RunConfig, directory: str, *, step: int = 1) -> Path:
    """As a run does, without its driver; every rank calls it. The checkpoint's directory."""
    pending = PendingCheckpoint(Path(directory), step=step)
    if dist.get_rank() == 0:
        pending.begin()
    dist.barrier()
    staged = _gather(outcome(worker.stage_checkpoint, str(pending.path)))
    written = _gather(outcome(worker.finish_checkpoint))
    if dist.get_rank() == 0:
        saved = merge_written(Saving(pending.path, numbers_of(staged)), written, config)
        pending.complete(make_manifest(config, step=step, **_facts(saved)))
    dist.barrier()
    return Path(directory) / f"step-{step:06d}"


def _facts(saved: Any) -> dict[str, Any]:
    names = ("updates", "optimizer_step", "layout", "model", "files")
    return {name: getattr(saved, name) for name in names}


def make_manifest(config: RunConfig, *, step: int, **facts: Any) -> Manifest:
    """A manifest whose other facts are a run's."""
    described, digest = describe_config(config)
    rest: dict[str, Any] = {
        "updates": 2 * step,
        "optimizer_step": 2 * step,
        "progress": {},
        "layout": {},
        "model": {},
        "versions": {},
        "telemetry": {},
        "metrics": {},
        "files": {},
    }
    return Manifest(step=step, policy_version=step, config=described, config_digest=digest, **(rest | facts))


def _gather(mine: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered
