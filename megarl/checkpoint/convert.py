"""Conversion of checkpoints between Hugging Face and torch.distributed.checkpoint, both ways, and to any layout.

Memory is bounded by the largest tensor, whatever the model: units (conversion.py) are read, converted and written one
by one. The target appears complete or not at all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megarl.checkpoint.conversion import (
    Job,
    Kind,
    list_check_units,
    list_units,
    open_source,
    plan_target_shards,
    target_bytes,
)
from megarl.checkpoint.convert_processes import Outcome, Phase, run_shares
from megarl.checkpoint.dist_format import COMMON_FILE
from megarl.checkpoint.dist_writer import finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_files import HF_DIRECTORY, add_hf_files, copy_hf_files
from megarl.checkpoint.hf_shards import SHARD_BYTES, create_shards
from megarl.checkpoint.memory import peak_resident_bytes
from megarl.checkpoint.new_directory import new_directory
from megarl.checkpoint.run_checkpoint import step_of
from megarl.checkpoint.sources import Source, is_dist_checkpoint, split_key
from megarl.models.global_space import extra_state_objects

Listener = Callable[[str, int, int], None]
"""Told what is done, how many bytes of it, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion did."""

    source: Kind
    target: Kind
    num_bytes: int
    """Of the tensors in the target."""
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
    tensor: int = 1,
    pipeline: int = 1,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    model: Path | None = None,
    check: bool = False,
    processes: int = 1,
    listen: Listener = lambda *_: None,
) -> Converted:
    """Write the checkpoint `source` as a new directory `target`.

    to: kind of the target; the other one than the source's by default.
    tensor, pipeline: the layout whose ranks' chunks a torch.distributed.checkpoint has; any layout loads it.
    dtype: of the weights; as they are by default. What an optimizer keeps stays in its own.
    shard_bytes: largest file.
    model: directory of config.json and the tokenizer, where a torch.distributed.checkpoint has not its own (`hf/`).
    check: compare everything that was written with the source before `target` gets its name.
    Raises CheckpointError and ModelError; nothing is left at `target` then.
    """
    started = time.perf_counter()
    source = find_checkpoint(source)
    kind: Kind = "dist" if is_dist_checkpoint(source) else "hf"
    job = Job(
        source=source,
        target=target,
        model=_model_directory(source, kind, model),
        to=to or ("hf" if kind == "dist" else "dist"),
        tensor=tensor,
        pipeline=pipeline,
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    opened = open_source(source, job.model)
    try:
        units = list_units(job, opened)
        total = target_bytes(job, opened, units)
        with new_directory(target, num_bytes=total) as partial:
            job = replace(job, target=partial)
            outcomes = _write(job, opened, total, processes=processes, listen=listen)
            if check:
                total_checked = target_bytes(job, opened, list_check_units(job, opened))
                outcomes += _run(job, "check", total_checked, processes=processes, listen=listen)
        left = sorted({split_key(key)[0] for key in opened.stored()} - {""}) if job.to == "hf" else []
    finally:
        opened.close()
    return Converted(
        source=kind,
        target=job.to,
        num_bytes=total,
        seconds=time.perf_counter() - started,
        peak_bytes=_peak(outcomes, processes),
        left_behind=tuple(name.rstrip(".") for name in left),
    )


def find_checkpoint(path: Path) -> Path:
    """`path`, or the newest checkpoint of the run in that directory; CheckpointError where there is nothing."""
    if not path.is_dir():
        raise CheckpointError(f"expected a checkpoint's directory, found nothing at {path}; correct the path")
    entries = {step_of(entry): entry for entry in (path / "checkpoints").glob("step-*") if is_dist_checkpoint(entry)}
    found = {step: entry for step, entry in entries.items() if step is not None}
    if not found and (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"{path} is a run without a complete checkpoint (`[checkpoint]` says when one is saved); its exported "
            f"weights, which are Hugging Face checkpoints, are in {path / 'hf'}"
        )
    return found[max(found)] if found and not is_dist_checkpoint(path) else path


def _model_directory(source: Path, kind: Kind, model: Path | None) -> Path:
    if model is not None:
        if not (model / "config.json").is_file():
            raise CheckpointError(f"expected config.json and the tokenizer in {model}, found none; correct --model")
        return model
    if kind == "hf":
        return source
    if (source / HF_DIRECTORY / "config.json").is_file():
        return source / HF_DIRECTORY
    raise CheckpointError(
        f"expected config.json and the tokenizer of the model in {source / HF_DIRECTORY}, found none; name a "
        "directory that has them with --model"
    )


def _write(job: Job, source: Source, total: int, *, processes: int, listen: Listener) -> list[Outcome]:
    if job.to == "hf":
        plan = plan_target_shards(job, source)
        create_shards(job.target, plan)
        copy_hf_files(job.model, job.target, dtypes={place.kind.dtype for place in plan.places.values()})
    else:
        dtypes = {job.dtype or source.dtype_of_key(key) for key in source.stored() if not split_key(key)[0]}
        add_hf_files(job.model, job.target, dtypes=dtypes)
    outcomes = _run(job, "write", total, processes=processes, listen=listen)
    if job.to == "dist":
        finish_dist_checkpoint(
            job.target,
            [outcome.written for outcome in outcomes],
            objects=extra_state_objects(source.shape),
            common=_common(job.source),
        )
    return outcomes


def _common(source: Path) -> dict[str, float] | bytes:
    """What Megatron keeps besides tensors: as it is; of a Hugging Face checkpoint that the order of rows is today's."""
    file = source / COMMON_FILE
    return file.read_bytes() if file.is_file() else {"checkpoint_version": 3.0}


def _run(job: Job, phase: Phase, total: int, *, processes: int, listen: Listener) -> list[Outcome]:
    what, done = {"write": "convert", "check": "compare"}[phase], 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        listen(what, done, total)

    listen(what, 0, total)
    return run_shares(job, phase, count=processes, advance=advance)


def _peak(outcomes: list[Outcome], processes: int) -> int:
    if processes == 1:
        return peak_resident_bytes()
    # The two phases' processes are not there at the same time.
    phases = [outcomes[index : index + processes] for index in range(0, len(outcomes), processes)]
    return peak_resident_bytes() + max(sum(outcome.peak_bytes for outcome in phase) for phase in phases)
