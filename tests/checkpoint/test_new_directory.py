"""Directories that appear complete or not at all: where they may, and that nobody else's is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.new_directory import new_directory, partial_of
from tests.checkpoint.mounts import tmpfs


def refuse(destination: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words), new_directory(destination):
        pytest.fail("it began to write")


def test_it_appears_when_all_is_written(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a" / "b") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def fail_within(destination: Path) -> None:
    with new_directory(destination) as partial:
        (partial / "file").write_text("x")
        raise RuntimeError("broken")


def test_a_failure_leaves_not_even_a_parent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        fail_within(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_where_it_is_written(tmp_path: Path) -> None:
    """To a directory on a larger disk, whether it is there yet or not."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        (tmp_path / f"to-{name}").symlink_to(tmp_path / "disk" / name if name == "new" else tmp_path / name)
        with new_directory(tmp_path / f"to-{name}") as partial:
            (partial / "file").write_text(name)
        assert (tmp_path / f"to-{name}").is_symlink()
    assert (tmp_path / "empty" / "file").read_text() == "empty"
    assert (tmp_path / "disk" / "new" / "file").read_text() == "new"


def test_what_cannot_be_replaced_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    refuse(tmp_path / "full", "exists and is not empty")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file", "exists and is not empty")
    refuse(tmp_path / "file" / "below", r"cannot be written \(.*Not a directory")
    refuse(tmp_path / ("n" * 300), r"cannot be written \(.*File name too long")
    (tmp_path / "circle").symlink_to("circle")
    refuse(tmp_path / "circle", "cannot be written")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (Path("."), tmp_path / "here"):
        refuse(name, "is the working directory")
    refuse(Path("/"), "exists and is not empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file", "full", "here"]


def test_a_mount_point_is_refused(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        refuse(disk, "is a mount point, which no other directory can replace; name one in it")


HOLDER = """
import sys
from pathlib import Path
from megarl.checkpoint.new_directory import new_directory
with new_directory(Path(sys.argv[1])) as partial:
    (partial / "theirs").write_text("x")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    """The second is told; when the first is killed, what it left is removed by the next."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "writing\n"
        refuse(tmp_path / "out", "is being written by another process")
        assert os.listdir(partial_of(tmp_path / "out")) == ["theirs"]
    finally:
        holder.kill()
        holder.communicate()
    with new_directory(tmp_path / "out") as partial:
        assert list(partial.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
