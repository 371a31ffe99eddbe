"""Small and read-only file systems for tests."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tmpfs(place: Path, *, size: str) -> Iterator[Path]:
    """A file system of `size` at `place`; the test is skipped where this user may not mount one."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def make_read_only(place: Path) -> None:
    """A tmpfs that takes no more writes, for root neither."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
