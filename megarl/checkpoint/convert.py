"""Conversion of checkpoints between Hugging Face and torch.distributed.checkpoint, both ways, and to any layout.

Memory is bounded by the largest tensor, whatever the model: units (conversion.py) are read, converted and written one
by one. The target appears complete or not at all.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megarl.checkpoint.conversion import (
    Job,
    list_check_units,
    list_units,
    open_source,
    plan_target_shards,
    target_bytes,
)
from megarl.checkpoint.convert_processes import Outcome, Phase, run_shares
from megarl.checkpoint.dist_chunk import check_archive
from megarl.checkpoint.dist_format import COMMON_FILE, CONFIG_FILE
from megarl.checkpoint.dist_writer import finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError, is_out_of_memory, list_faults
from megarl.checkpoint.hf_files import HF_DIRECTORY, add_hf_files, copy_hf_files
from megarl.checkpoint.hf_index import is_there
from megarl.checkpoint.hf_shards import SHARD_BYTES, create_shards
from megarl.checkpoint.manifest import check_model
from megarl.checkpoint.new_directory import check_destination, new_directory
from megarl.checkpoint.source_path import FoundCheckpoint, Kind, check_apart, find_checkpoint
from megarl.checkpoint.sources import Source, is_optimizer_state, split_key
from megarl.models.geometry import check_policy_split
from megarl.models.global_space import extra_state_objects
from megarl.telemetry.resident_memory import peak_resident_bytes

Listener = Callable[[str, int, int], None]
"""Told what is done, how many bytes of it, and of how many."""

Common = dict[str, float] | bytes
"""What Megatron keeps besides tensors, or the content of the file that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion did."""

    path: Path
    """The checkpoint that was read."""
    source: Kind
    target: Kind
    num_bytes: int
    """Of the tensors in the target."""
    processes: int
    """That shared the work."""
    seconds: float
    peak_bytes: int
    """The most memory of each process, mapped pages included, added up."""
    left_behind: tuple[str, ...]
    """What of the source the target has no place for."""


def convert(  # noqa: PLR0913  (options of one command)
    source: Path,
    target: Path,
    *,
    to: Kind | None = None,
    tensor: int | None = None,
    pipeline: int | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    model: Path | None = None,
    check: bool = False,
    processes: int = 1,
    listen: Listener = lambda *_: None,
) -> Converted:
    """Write the checkpoint `source` as a new directory `target`.

    source: what `find_checkpoint` finds.
    to: kind of the target; the other one than the source's by default.
    tensor, pipeline: the layout whose ranks' chunks a torch.distributed.checkpoint has (default 1); any one loads it.
    dtype: of the weights; as they are by default. What an optimizer keeps stays in its own.
    shard_bytes: largest file of a Hugging Face target; a file of the other kind ends when it has so many.
    model: directory of config.json and the tokenizer, where a torch.distributed.checkpoint has not its own (`hf/`).
    check: compare everything that was written with the source before `target` gets its name.
    Raises CheckpointError and ModelError; nothing is left at `target` then.
    """
    started = time.perf_counter()
    found = find_checkpoint(source)
    check_destination(target)
    check_apart(found.path, target)
    kind: Kind = to or ("hf" if found.kind == "dist" else "dist")
    if kind == "hf" and (tensor is not None or pipeline is not None):
        raise CheckpointError(
            "a Hugging Face checkpoint has no layout: leave out --tensor and --pipeline, or write --to dist"
        )
    job = Job(
        source=found.path,
        target=target,
        model=_model_directory(found, model),
        to=kind,
        tensor=tensor or 1,
        pipeline=pipeline or 1,
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    with _told_of_memory(target):
        total, left, outcomes = _convert(job, found, check=check, processes=processes, listen=listen)
    return Converted(
        path=found.path,
        source=found.kind,
        target=job.to,
        num_bytes=total,
        processes=max(map(len, outcomes)),
        seconds=time.perf_counter() - started,
        peak_bytes=peak_resident_bytes() + max(map(_of_others, outcomes)),
        left_behind=left,
    )


@contextmanager
def _told_of_memory(target: Path) -> Iterator[None]:
    """CheckpointError where the block gets no more of it."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{target}: this process got no more memory ({error}); free some, use fewer --processes, or raise its "
            "limit (ulimit -v); nothing was left there"
        ) from error


def _convert(
    job: Job, found: FoundCheckpoint, *, check: bool, processes: int, listen: Listener
) -> tuple[int, tuple[str, ...], list[list[Outcome]]]:
    """(bytes of the target's tensors, what stayed behind, what the processes of each phase did)."""
    source = open_source(job.source, job.model)
    try:
        if found.of_run is not None:
            check_model(found.of_run.manifest, source.shape, str(job.source), than=f"{job.model / 'config.json'}")
        left = _left_behind(job, source)
        if job.to == "dist":
            check_policy_split(source.shape, tensor_size=job.tensor, pipeline_size=job.pipeline)
        common = _common(job.source) if job.to == "dist" else None
        units = list_units(job, source)
        total = target_bytes(job, source, units)
        with new_directory(job.target, num_bytes=total) as partial:
            job = replace(job, target=partial)
            outcomes = [_write(job, source, total, common, processes=min(processes, len(units)), listen=listen)]
            if check:
                units = list_check_units(job, source)
                total_checked = target_bytes(job, source, units)
                outcomes.append(_run(job, "check", total_checked, processes=min(processes, len(units)), listen=listen))
        return total, left, outcomes
    finally:
        source.close()


def _left_behind(job: Job, source: Source) -> tuple[str, ...]:
    """What of the source the target has no place for. CheckpointError where that would be an optimizer's state, which
    another layout of the same kind is expected to have."""
    unplaced = source.unplaced()
    names = tuple(sorted({key.partition("/")[0] for key in unplaced}))
    if job.to == "hf":
        beside = {split_key(key)[0].rstrip(".") for key in source.stored()} - {""}
        return (*sorted(beside), *names)
    if optimizer := sorted(filter(is_optimizer_state, unplaced)):
        raise CheckpointError(
            f"{job.source} has an optimizer's state that is of no tensor of the model, but of a rank's buckets:\n"
            f"  {list_faults(optimizer, shown=4)}\nSave it from Megatron with --dist-ckpt-optim-fully-reshardable, or "
            "convert the weights alone: to Hugging Face (--to hf), and that to the other layout"
        )
    return names


def _model_directory(found: FoundCheckpoint, model: Path | None) -> Path:
    if model is not None:
        if not (model / "config.json").is_file():
            raise CheckpointError(f"expected config.json and the tokenizer in {model}, found none; correct --model")
        return model
    if found.kind == "hf":
        is_there(found.path / "config.json")
        return found.path
    own = found.path / HF_DIRECTORY
    if (own / "config.json").is_file():
        return own
    raise CheckpointError(
        f"expected config.json and the tokenizer of the model in {own}, found none; name a directory that has them "
        "with --model"
    )


def _write(
    job: Job, source: Source, total: int, common: Common | None, *, processes: int, listen: Listener
) -> list[Outcome]:
    if job.to == "hf":
        plan = plan_target_shards(job, source)
        create_shards(job.target, plan)
        copy_hf_files(job.model, job.target, dtypes={place.kind.dtype for place in plan.places.values()})
    else:
        dtypes = {job.dtype or source.dtype_of_key(key) for key in source.stored() if not split_key(key)[0]}
        add_hf_files(job.model, job.target, dtypes=dtypes)
    outcomes = _run(job, "write", total, processes=processes, listen=listen)
    if common is not None:
        finish_dist_checkpoint(
            job.target,
            [outcome.written for outcome in outcomes],
            objects=extra_state_objects(source.shape),
            common=common,
        )
    return outcomes


def _common(source: Path) -> Common:
    """What Megatron keeps besides tensors: as it is, and not unpickled; where there is nothing, that the order of rows
    is today's."""
    file = source / COMMON_FILE
    if is_there(file):
        return check_archive(file)
    if (source / CONFIG_FILE).is_file():
        raise CheckpointError(f"{file} is missing, without which Megatron loads nothing; copy it again")
    return {"checkpoint_version": 3.0}


def _run(job: Job, phase: Phase, total: int, *, processes: int, listen: Listener) -> list[Outcome]:
    what, done = {"write": "convert", "check": "compare"}[phase], 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        listen(what, done, total)

    listen(what, 0, total)
    return run_shares(job, phase, count=processes, advance=advance)


def _of_others(outcomes: list[Outcome]) -> int:
    """Peak memory of a phase's processes beside this one, which does the work itself where that takes one."""
    return sum(outcome.peak_bytes for outcome in outcomes) if len(outcomes) > 1 else 0
