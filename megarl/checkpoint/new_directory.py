"""Directories that appear complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megarl.checkpoint.errors import CheckpointError


@contextmanager
def new_directory(destination: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a directory beside `destination`; after the block it is flushed to the disk and gets that name.

    When the block raises it is removed. num_bytes: what will be written, which the disk must have free.
    Raises CheckpointError where `destination` exists and is not empty, and where it cannot be made or written: the disk
    is full, before or meanwhile, or it may not be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists and is not empty; remove it or write to another path")
    # One fixed name: what a killed run left is overwritten by the next, not collected.
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        check_room(partial, destination, num_bytes)
        yield partial
        for path in partial.rglob("*"):
            flush(path)
        flush(partial)
        os.replace(partial, destination)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk is full ({error.strerror})" if full else f"it cannot be written ({error})"
        raise CheckpointError(f"{destination}: {reason}; nothing was left there") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(destination.parent)


def check_room(directory: Path, destination: Path, num_bytes: int) -> None:
    """CheckpointError where the disk of `directory` has no room for what `destination` will hold."""
    total, _, free = shutil.disk_usage(directory)
    if total and num_bytes > free:  # some file systems do not know
        raise CheckpointError(
            f"{destination}: {num_bytes / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free; "
            "free some, or write to another disk"
        )


def flush(path: Path) -> None:
    """The content of a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE) flush no directories, and say so of each.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
