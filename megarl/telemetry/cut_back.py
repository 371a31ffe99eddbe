"""What a run directory holds beyond a step is taken away, so that the run can go on after that step.

Every file is cut by the steps that it speaks of, not by what was noted elsewhere, so that it does not matter when the
run died. What stays is untouched, byte for byte (timeline.json: event for event). Weights & Biases: see
`sinks.WandbSink`, which needs the files that stay.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megarl.telemetry.atomic_file import remove_tree
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.spans import read_timeline, write_timeline

_ROW_STEP = re.compile(rb'\{"step": (\d+)[,}]')
"""How a row begins; one that somebody has edited may not."""
_FILE_STEP = re.compile(r"step-(\d+)\D*")
_RECORD_HEAD, _RECORD_TAIL = struct.Struct("<QI"), 4
"""Of a TFRecord: the length with its checksum before, the data's checksum after."""


def cut_back(run: RunDirectory, *, step: int) -> list[str]:
    """Leave in the run's files what speaks of steps up to `step`, or nothing where that is 0, not what was measured
    before the first step either: it is measured again. A line for each thing that was cut.

    Checkpoints are none of its business: what is newer than the one to go on from is refused before.
    """
    return [
        *cut_rows(run.metrics_path, step=step),
        *cut_rows(run.updates_path, step=step),
        *_cut_timeline(run.timeline_path, step=step),
        *_remove_files(run.rollouts, step=step),
        *_remove_files(run.exports, step=step),
        *_remove_files(run.evaluations, step=step),
        *_cut_events(run.tensorboard, step=step),
    ]


def cut_rows(path: Path, *, step: int) -> Iterator[str]:
    """Cut a file of rows before the first of a later step, or before a last one that was cut in half. One that lacks
    the end of its line alone gets it."""
    if not path.is_file():
        return
    kept, cut, is_open = 0, 0, False
    with path.open("rb") as file:
        for line in file:
            found = _step_of_row(line)
            is_open = not line.endswith(b"\n")
            if cut or (is_open and found is None) or (found is not None and _is_beyond(found, step)):
                cut += 1
            else:
                kept += len(line)
    if cut:
        _truncate(path, kept)
        yield f"{path.name}: {cut} rows beyond step {step}"
    elif is_open:
        with path.open("ab") as file:
            file.write(b"\n")


def _is_beyond(found: int, step: int) -> bool:
    return found > step or not step


def _step_of_row(line: bytes) -> int | None:
    """None: it is no row, or half of one."""
    found = _ROW_STEP.match(line)
    if found and line.endswith(b"\n"):
        return int(found[1])
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


def _cut_timeline(path: Path, *, step: int) -> Iterator[str]:
    """Keep the events up to the span of the step, and what was drawn later of the files of those steps: spans that know
    their step have it in their details."""
    if not path.is_file():
        return
    events = read_timeline(path) if path.stat().st_size else []
    ends = [number for number, event in enumerate(events) if event["name"] == "step" and 0 < _step_of(event) <= step]
    end = ends[-1] + 1 if ends else 0
    # Names of processes and lanes ("M") stay: a span that stays may be drawn there.
    kept = events[:end] + [event for event in events[end:] if event["ph"] == "M" or 0 < _step_of(event) <= step]
    if len(kept) < len(events):
        write_timeline(path, kept)
        yield f"{path.name}: {len(events) - len(kept)} events beyond step {step}"


def _step_of(event: dict[str, Any]) -> int:
    """0: it does not say."""
    return int(event.get("args", {}).get("step", 0))


def _remove_files(folder: Path, *, step: int) -> Iterator[str]:
    """Files and directories named after a later step, and halves that a killed run left."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        found = _FILE_STEP.match(path.name)
        if path.name.endswith(".partial") or (found and _is_beyond(int(found[1]), step)):
            remove_tree(path)
            yield f"{folder.name}/{path.name}"


def _cut_events(folder: Path, *, step: int) -> Iterator[str]:
    """TensorBoard's files, each before the first event of a later step; what is left without an event of a step goes.

    They are left alone where tensorboard, which reads them, is not installed: then nothing is written there either.
    """
    if not folder.is_dir() or find_spec("tensorboard") is None:
        return
    for path in sorted(folder.glob("*tfevents*")):
        size = path.stat().st_size
        kept, speaks = _end_of_events(path, step=step)
        if not speaks:
            path.unlink()
        elif kept < size:
            _truncate(path, kept)
        if not speaks or kept < size:
            yield f"{folder.name}/{path.name}: {size - kept if speaks else size} bytes beyond step {step}"


def _end_of_events(path: Path, *, step: int) -> tuple[int, bool]:
    """(where the first event of a later step begins, or what is none, or the file ends; whether one of a step is
    before)."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    end, speaks, size = 0, False, path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(_RECORD_HEAD.size)) == _RECORD_HEAD.size:
            length, _ = _RECORD_HEAD.unpack(head)
            if not 0 < length <= size - file.tell() - _RECORD_TAIL:
                break
            data = file.read(length + _RECORD_TAIL)
            try:
                event = Event.FromString(data[:length])
            except DecodeError:
                break
            if event.step > step:
                break
            speaks |= event.step > 0
            end = file.tell()
    return end, speaks


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def find_gaps(run: RunDirectory, told: Mapping[str, Any], *, step: int) -> list[str]:
    """Rows that were there when a checkpoint was written and are not: a line for each such file, once it is cut back.

    told: `StepReporter.positions()` of then.
    """
    gaps = []
    for name, expected in told.get("bytes", {}).items():
        path = run.path / name
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            gaps.append(
                f"{name} has {found} bytes of the steps up to {step}, but had {expected} when the checkpoint was "
                "written: it was edited, or rows were lost with the machine"
            )
    return gaps
