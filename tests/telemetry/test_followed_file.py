"""A file that grows, is replaced, cut back, half written or gone is read as it is, and only where it is new."""

import os
from pathlib import Path

import pytest

from megarl.telemetry.followed_file import FollowedFile, NewLines, sample_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


def follow(path: Path, at_once_bytes: int = 1 << 20) -> FollowedFile:
    return FollowedFile(path, at_once_bytes=at_once_bytes)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_what_is_new_is_read(path: Path) -> None:
    file = follow(path)
    assert file.read_new() == NewLines(lines=[], anew=False, skipped=False)
    append(path, b"one\ntw")
    assert file.read_new() == NewLines(lines=[b"one"], anew=True, skipped=False)
    assert file.read_new() == NewLines(lines=[], anew=False, skipped=False)
    append(path, b"o\nthree\n")
    assert file.read_new() == NewLines(lines=[b"two", b"three"], anew=False, skipped=False)


def bytes_read() -> int:
    """By this process so far."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def test_what_was_read_is_not_read_again(path: Path) -> None:
    path.write_bytes((b"y" * 999 + b"\n") * 20_000)
    file = follow(path, at_once_bytes=1 << 30)
    assert len(file.read_new().lines) == 20_000
    append(path, b"new\n")
    before = bytes_read()
    assert file.read_new().lines == [b"new"]
    assert bytes_read() - before < 100_000


def test_of_a_long_file_the_end_is_read(path: Path) -> None:
    path.write_bytes(b"".join(b"%09d\n" % number for number in range(10_000)))
    file = follow(path, at_once_bytes=95)
    before = bytes_read()
    assert file.read_new() == NewLines(
        lines=[b"%09d" % number for number in range(9991, 10_000)], anew=True, skipped=True
    )
    assert bytes_read() - before < 50_000
    append(path, b"".join(b"%09d\n" % number for number in range(10_000, 10_100)))
    assert file.read_new() == NewLines(
        lines=[b"%09d" % number for number in range(10_091, 10_100)], anew=False, skipped=True
    )


def test_a_line_longer_than_a_reading_is_passed_over(path: Path) -> None:
    path.write_bytes(b"first\n" + b"x" * 500)
    file = follow(path, at_once_bytes=100)
    assert file.read_new().lines == []
    append(path, b"x\nlast\n")
    assert file.read_new().lines == [b"last"]


def test_a_file_that_was_replaced_is_begun_anew(path: Path) -> None:
    path.write_bytes(b"one\n")
    file = follow(path)
    file.read_new()
    other = path.with_name("other")
    other.write_bytes(b"one\ntwo\n")
    os.replace(other, path)
    assert file.read_new() == NewLines(lines=[b"one", b"two"], anew=True, skipped=False)


@pytest.mark.parametrize("grown", [b"", b"three\n", b"three\nfour\nfive\nsix\n"])
def test_a_file_that_was_cut_back_is_begun_anew(path: Path, grown: bytes) -> None:
    path.write_bytes(b"one\ntwo\n")
    file = follow(path)
    file.read_new()
    os.truncate(path, 4)
    append(path, grown)
    assert file.read_new() == NewLines(lines=[b"one", *grown.splitlines()], anew=True, skipped=False)


def test_a_file_that_is_gone_is_forgotten(path: Path) -> None:
    path.write_bytes(b"one\n")
    file = follow(path)
    file.read_new()
    path.unlink()
    assert file.read_new() == NewLines(lines=[], anew=True, skipped=False)
    assert file.read_new() == NewLines(lines=[], anew=False, skipped=False)
    path.write_bytes(b"two\n")
    assert file.read_new().lines == [b"two"]


def test_samples_lie_evenly_whatever_the_size(path: Path) -> None:
    path.write_bytes(b"".join(b"%09d\n" % number for number in range(100_000)))
    before = bytes_read()
    found = [int(line) for line in sample_lines(path, count=10)]
    assert found == [10_000 * number for number in range(10)]
    assert bytes_read() - before < 10 * 40_000


def test_samples_of_a_short_file_are_its_lines(path: Path) -> None:
    assert sample_lines(path, count=5) == []
    path.write_bytes(b"one\ntwo\nhal")
    assert sample_lines(path, count=50) == [b"one", b"two"]


def test_samples_of_lines_longer_than_a_block(path: Path) -> None:
    lines = [bytes([ord("a") + number]) * 50_000 for number in range(3)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    assert sample_lines(path, count=30) == lines
