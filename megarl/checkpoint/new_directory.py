"""Directories that appear complete or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megarl.checkpoint.errors import CheckpointError, is_out_of_memory


@contextmanager
def new_directory(destination: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a directory beside `destination`; after the block it is flushed to the disk and gets that name.

    A link as `destination` is followed. When the block raises it is removed. num_bytes: what will be written, which the
    disk must have free. Raises CheckpointError where `destination` exists and is not empty, where another process is
    writing it, and where it cannot be made or written: the disk is full, before or meanwhile, or it may not be written.
    """
    check_destination(destination)
    final = destination.resolve()
    partial = partial_of(final)
    made = [parent for parent in final.parents if not parent.exists()]
    try:
        with _claimed(partial, destination):
            check_room(partial, destination, num_bytes)
            yield partial
            for path in partial.rglob("*"):
                flush(path)
            flush(partial)
            os.replace(partial, final)
    except OSError as error:
        _remove(made)
        if is_out_of_memory(error):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk is full ({error.strerror})" if full else f"it cannot be written ({error})"
        raise CheckpointError(f"{destination}: {reason}; nothing was left there") from error
    except BaseException:
        _remove(made)
        raise
    flush(final.parent)


def partial_of(destination: Path) -> Path:
    """Where a directory lies until it gets its name; one fixed place, so that the next writing removes what a killed
    one left."""
    return destination.with_name(f".{destination.name}.partial")


def check_destination(destination: Path) -> None:
    """CheckpointError where a new directory cannot get this name."""
    try:
        final = destination.resolve()
        is_empty = not any(final.iterdir()) if final.is_dir() else not final.exists()
        special = {"a mount point": os.path.ismount(final), "the working directory": _is_here(final)}
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise CheckpointError(f"{destination}: it cannot be written ({error}); name another path") from error
    if not is_empty:
        raise CheckpointError(f"{destination} exists and is not empty; remove it or write to another path")
    for what, is_it in special.items():
        if is_it:
            raise CheckpointError(f"{destination} is {what}, which no other directory can replace; name one in it")


def _is_here(path: Path) -> bool:
    try:
        return path.samefile(".")
    except OSError:  # one of the two is not there
        return False


@contextmanager
def _claimed(partial: Path, destination: Path) -> Iterator[None]:
    """`partial` is there and empty, and nobody else's while the block runs; removed when that raises.

    A lock says so, which goes with the process that holds it. Where the file system has none (NFS locks no directory),
    nothing keeps two from writing one path.
    """
    busy = CheckpointError(f"{destination} is being written by another process; wait for it, or write to another path")
    if partial.exists():
        with _locked(partial, busy):
            shutil.rmtree(partial)
    partial.mkdir(parents=True)
    with _locked(partial, busy):
        try:
            yield
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(directory: Path, busy: CheckpointError) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        if not os.path.samestat(os.fstat(descriptor), os.stat(directory)):
            raise busy  # removed and made anew by another between these lines
        yield
    finally:
        os.close(descriptor)


def _remove(empty: list[Path]) -> None:
    """The parents that were made for a directory which then was not, the lowest first."""
    for path in empty:
        with suppress(OSError):
            path.rmdir()


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
