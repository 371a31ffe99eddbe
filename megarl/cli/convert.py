"""`megarl convert`: checkpoints from Hugging Face to torch.distributed.checkpoint and back."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from megarl.checkpoint.convert import Converted, Listener, convert
from megarl.checkpoint.errors import CheckpointError
from megarl.config.base import ConfigError
from megarl.models.shape import ModelError

_KINDS = {"hf": "Hugging Face", "dist": "torch.distributed.checkpoint"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Of the command line."""

    to: Literal["hf", "dist"] | None
    tensor: int | None
    pipeline: int | None
    dtype: str | None
    shard_gb: float
    model: Path | None
    check: bool
    processes: int


def run_convert(console: Console, source: Path, target: Path, options: ConvertOptions) -> int:
    """Convert, with a progress bar where the console is a terminal; ConfigError where it cannot be done."""
    source, target = source.expanduser(), target.expanduser()
    if options.to == "hf" and (options.tensor is not None or options.pipeline is not None):
        raise ConfigError("megarl convert: --tensor and --pipeline lay out --to dist; a Hugging Face target has none")
    try:
        with _ended_by_sigterm(), _progress() as listen:
            done = convert(
                source,
                target,
                to=options.to,
                tensor=options.tensor or 1,
                pipeline=options.pipeline or 1,
                dtype=None if options.dtype is None else getattr(torch, options.dtype),
                shard_bytes=max(1, int(options.shard_gb * 1e9)),
                model=None if options.model is None else options.model.expanduser(),
                check=options.check,
                processes=options.processes,
                listen=listen,
            )
    except (CheckpointError, ModelError) as error:
        raise ConfigError(f"megarl convert: {error}") from error
    _print(console, source, target, done, options)
    return 0


def _print(console: Console, source: Path, target: Path, done: Converted, options: ConvertOptions) -> None:
    layout = f", tensor {options.tensor or 1} x pipeline {options.pipeline or 1}" if done.target == "dist" else ""
    lines = [
        f"source   {source} ({_KINDS[done.source]})",
        f"target   {target} ({_KINDS[done.target]}{layout})",
        f"weights  {done.num_bytes / 1e9:.2f} GB in {done.seconds:.1f} s",
        f"memory   at most {done.peak_bytes / 1e9:.2f} GB, mapped pages included, processes {options.processes}",
    ]
    if options.check:
        lines.append("checked  every element is the source's")
    if done.left_behind:
        lines.append(f"left     {', '.join(done.left_behind)}: a Hugging Face checkpoint has no place for them")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Listener]:
    """A bar for each thing that is done, in bytes, on a terminal; no output elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield listen


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that nothing half-written stays."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
