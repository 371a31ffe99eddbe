"""`megarl convert`: checkpoints from Hugging Face to torch.distributed.checkpoint and back."""

import math
import signal
from collections.abc import Callable, Iterator
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
_SHOWN = 8


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
    if not math.isfinite(options.shard_gb):
        raise ConfigError(f"megarl convert: expected a number of GB for --shard-gb, found {options.shard_gb}")
    try:
        with _ended_by_signals() as end, _progress(end) as listen:
            done = convert(
                source,
                target,
                to=options.to,
                tensor=options.tensor,
                pipeline=options.pipeline,
                dtype=None if options.dtype is None else getattr(torch, options.dtype),
                shard_bytes=max(1, int(options.shard_gb * 1e9)),
                model=None if options.model is None else options.model.expanduser(),
                check=options.check,
                processes=options.processes,
                listen=listen,
            )
    except (CheckpointError, ModelError, OSError) as error:
        raise ConfigError(f"megarl convert: {error}") from error
    _print(console, target, done, options)
    return 0


def _print(console: Console, target: Path, done: Converted, options: ConvertOptions) -> None:
    layout = f", tensor {options.tensor or 1} x pipeline {options.pipeline or 1}" if done.target == "dist" else ""
    processes = f"{done.processes} process{'es' if done.processes > 1 else ''}"
    lines = [
        f"source   {done.path} ({_KINDS[done.source]})",
        f"target   {target} ({_KINDS[done.target]}{layout})",
        f"tensors  {_size(done.num_bytes)} in {done.seconds:.1f} s",
        f"memory   at most {_size(done.peak_bytes)}, mapped pages included, {processes}",
    ]
    if options.check:
        lines.append("checked  every element is the source's")
    if done.left_behind:
        more = f", and {len(done.left_behind) - _SHOWN} more" if len(done.left_behind) > _SHOWN else ""
        names = ", ".join(done.left_behind[:_SHOWN]) + more
        lines.append(f"left     {names}: {_KINDS[done.target]} has no place for them")
    for line in lines:
        # A path may have bytes that are no text.
        text = line.encode("utf-8", "backslashreplace").decode()
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


@contextmanager
def _progress(end: Callable[[], None]) -> Iterator[Listener]:
    """A bar for each thing that is done, in bytes, on a terminal; no output elsewhere. `end` is called with each."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(what: str, done: int, total: int) -> None:
            end()
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield listen


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[], None]]:
    """Yield what ends the command where it is called after Ctrl-C or SIGTERM; a second signal ends it anywhere.

    Not where the signal comes: libraries that call back into Python make errors of their own of an interrupt.
    """
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            end()

    def end() -> None:
        if heard:
            raise SystemExit(128 + heard[0])

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
