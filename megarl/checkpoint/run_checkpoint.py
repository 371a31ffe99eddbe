"""The checkpoints of a run: one directory each, complete or not there.

    checkpoints/.step-000012.partial    one that is being written, or whose writing was cut short
    checkpoints/step-000012             complete: renamed when everything in it was on the disk, the manifest last

A directory is believed only by its manifest and the sizes it lists; `RunCheckpoint.verify` reads every byte.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import MANIFEST_FILE, Manifest
from megarl.checkpoint.new_directory import check_room, flush
from megarl.telemetry.atomic_file import remove_tree

_NAME = re.compile(r"step-(\d{6,})")
_PARTIAL = re.compile(r"\.step-\d{6,}\.(partial|replaced)")
_READERS = 4
_SHOWN_FAULTS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint whose manifest and sizes are right. `path` is its directory."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises CheckpointError naming the file where the directory is no complete checkpoint; reads sizes only."""
        checkpoint = cls(path, Manifest.read(path))
        _raise_faults(path, list(checkpoint._size_faults()))
        return checkpoint

    @property
    def step(self) -> int:
        return self.manifest.step

    def verify(self, *, but: str | None = None) -> None:
        """Read every file, or those whose names do not end with `but`. CheckpointError, naming each that is not as it
        was written."""
        faults = list(self._size_faults())
        names = [] if faults else sorted(name for name in self.manifest.files if but is None or not name.endswith(but))
        with ThreadPoolExecutor(_READERS) as pool:
            faults += [fault for fault in pool.map(self._content_fault, names) if fault]
        _raise_faults(self.path, faults)

    def _size_faults(self) -> Iterator[str]:
        for name, facts in sorted(self.manifest.files.items()):
            try:
                found = (self.path / name).stat().st_size
            except OSError as error:
                yield f"{name}: expected {facts['bytes']} bytes, found none ({error.strerror})"
                continue
            if found != facts["bytes"]:
                yield f"{name}: expected {facts['bytes']} bytes, found {found}"

    def _content_fault(self, name: str) -> str | None:
        from megarl.checkpoint.dist_writer import checksum_of  # imports torch, which finding checkpoints needs not

        expected = self.manifest.files[name]["checksum"]
        try:
            found = checksum_of(self.path / name)
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror})"
        return None if found == expected else f"{name}: expected checksum {expected}, found {found}"


def _raise_faults(path: Path, faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise CheckpointError(
            f"{path} is damaged: {'; '.join(faults[:_SHOWN_FAULTS])}{more}. Use another checkpoint: remove or move "
            "this directory, and the run goes on from the one before"
        )


def checkpoint_name(step: int) -> str:
    """step-000012: zero-padded so that names sort by step."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int | None:
    """The step that a complete checkpoint's directory is named after; None where it is named otherwise, as a copy that
    somebody has put beside it."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(directory: Path) -> list[RunCheckpoint]:
    """The complete ones below `directory`, by step. What has a checkpoint's name and is none is passed over, with a
    warning that says why."""
    found, faults = read_checkpoints(directory)
    for fault in faults:
        _log.warning("passed over: %s", fault)
    return found


def read_checkpoints(directory: Path) -> tuple[list[RunCheckpoint], list[str]]:
    """(the complete ones below `directory`, by step; why what else has a checkpoint's name is none)."""
    found, faults = [], []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        step = step_of(path)
        if step is None or not path.is_dir():
            continue
        try:
            checkpoint = RunCheckpoint.open(path)
            if checkpoint.step != step:
                raise CheckpointError(
                    f"{path / MANIFEST_FILE} is of step {checkpoint.step}; was the directory renamed?"
                )
        except CheckpointError as error:
            faults.append(str(error))
        else:
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.step), faults


def newest_checkpoint(directory: Path) -> RunCheckpoint | None:
    """The complete one of the latest step; None where there is none."""
    return max(list_checkpoints(directory), key=lambda checkpoint: checkpoint.step, default=None)


def clear_unfinished(directory: Path) -> None:
    """Remove what writings that were cut short have left."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if _PARTIAL.fullmatch(path.name):
            _remove(path)


class PendingCheckpoint:
    """A checkpoint that is being written. States: begun -> complete, or discarded."""

    def __init__(self, directory: Path, *, step: int) -> None:
        self.step = step
        self._final = directory / checkpoint_name(step)
        self.path = directory / f".{self._final.name}.partial"
        """Where its files go."""

    def begin(self, *, num_bytes: int = 0) -> None:
        """Make the directory, empty. num_bytes: what is to be written, as far as that is known.

        Raises CheckpointError where that is not possible, or the disk has no room for it: a disk that a save fills up
        takes the step's own files no more, too.
        """
        try:
            if os.path.lexists(self.path):
                remove_tree(self.path)
            self.path.mkdir(parents=True)
            check_room(self.path, self._final, num_bytes)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be made: {error.strerror or error}") from error

    def complete(self, manifest: Manifest) -> RunCheckpoint:
        """Write the manifest, which lists all the files, and give the directory its name.

        Raises CheckpointError where a file is not there as the manifest has it, or the disk takes no more.
        """
        try:
            manifest.write(self.path)
            flush(self.path)
            RunCheckpoint.open(self.path)
            with _moved_aside(self._final):
                os.rename(self.path, self._final)
            flush(self._final.parent)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be completed: {error.strerror or error}") from error
        return RunCheckpoint(self._final, manifest)

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        _remove(self.path)


@contextlib.contextmanager
def _moved_aside(path: Path) -> Iterator[None]:
    """While the block puts something in the place of `path`; what was there is then removed, or comes back."""
    aside = path.with_name(f".{path.name}.replaced")
    if not path.exists():
        yield
        return
    _remove(aside)
    os.rename(path, aside)
    try:
        yield
    except BaseException:
        os.rename(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    """A directory that nobody may take for a checkpoint while it goes: renamed already, or never complete. What cannot
    be removed now is when the run goes on."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoint(checkpoint: RunCheckpoint) -> None:
    """Remove it: first its name, so that half of one is never found. OSError where that is not possible."""
    aside = checkpoint.path.with_name(f".{checkpoint.path.name}.replaced")
    _remove(aside)
    os.rename(checkpoint.path, aside)
    _remove(aside)


def total_bytes(files: Mapping[str, Mapping[str, Any]]) -> int:
    """Of a manifest's files."""
    return sum(int(facts["bytes"]) for facts in files.values())
