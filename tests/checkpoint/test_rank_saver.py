"""A rank's saves through the real writer process: what is written, and what is said where it cannot be."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.dist_writer import Written, checksum_of, finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.rank_saver import RankSaver, WrittenPart
from megarl.checkpoint.staging import StagingMemory, StatePiece, plan_staging
from megarl.checkpoint.writer_messages import Done, Failed, WriteRequest, parse_reply, reply_line
from megarl.telemetry.process_mark import start_ticks
from tests.checkpoint.mounts import tmpfs

ROWS = torch.arange(24.0).view(4, 6)


def make_pieces(rows: torch.Tensor, *, split: int = 2) -> list[StatePiece]:
    """Two rectangles of a matrix, the second not contiguous, and a vector in bfloat16."""
    return [
        StatePiece("matrix", (4, 6), (0, 0), rows[:, :split]),
        StatePiece("matrix", (4, 6), (0, split), rows[:, split:]),
        StatePiece("vector", (1, 3), (0, 0), torch.tensor([[1.5, -2.0, 3.0]], dtype=torch.bfloat16)),
    ]


@pytest.fixture
def saver():
    made = RankSaver(0, timeout_s=60.0)
    yield made
    made.close()


def read(directory: Path, part: WrittenPart) -> dict[str, torch.Tensor]:
    finish_dist_checkpoint(directory, [Written(**part.result)])
    with open_dist_checkpoint(directory, verify=True) as checkpoint:
        return {key: checkpoint.read(key, (0, 0), tensor.shape) for key, tensor in checkpoint.tensors.items()}


def test_what_is_written_is_what_was_copied(saver: RankSaver, tmp_path: Path) -> None:
    rows = ROWS.clone()
    pids = set()
    for save in range(2):
        directory = tmp_path / str(save)
        directory.mkdir()
        rows += save
        expected = rows.clone()
        saver.stage(make_pieces(rows), directory)
        rows.zero_()  # training goes on
        part = saver.finish()
        pids.add(saver.writer_pid)
        for name, record in part.result["files"].items():
            assert (directory / name).stat().st_size == record["bytes"]
            assert checksum_of(directory / name) == record["checksum"]
        found = read(directory, part)
        assert torch.equal(found["matrix"], expected)
        assert torch.equal(found["vector"], torch.tensor([[1.5, -2.0, 3.0]], dtype=torch.bfloat16))
        # 4 x 2, 4 x 4 and 3 elements, each piece from a multiple of 64 bytes on.
        assert part.staged_bytes == 64 + 64 + 64
        rows = expected
    assert len(pids) == 1  # it stays


def test_more_state_gets_more_memory(saver: RankSaver, tmp_path: Path) -> None:
    for number, size in enumerate((4, 4096, 4)):
        directory = tmp_path / str(number)
        directory.mkdir()
        saver.stage([StatePiece("vector", (1, size), (0, 0), torch.ones(1, size))], directory)
        part = saver.finish()
        assert part.staged_bytes == (64 if number == 0 else 4 * 4096)
        assert torch.equal(read(directory, part)["vector"], torch.ones(1, size))


def test_a_rank_with_nothing_of_its_own_writes_nothing(saver: RankSaver, tmp_path: Path) -> None:
    saver.stage([], tmp_path)
    assert saver.finish().result == {"files": {}, "chunks": []}
    assert list(tmp_path.iterdir()) == []


def large_pieces() -> list[StatePiece]:
    return [StatePiece(f"t{i}", (1, 1 << 20), (0, 0), torch.ones(1, 1 << 20)) for i in range(64)]


def wait_for_files(directory: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(directory.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_writer_that_is_killed_is_reported_and_replaced(saver: RankSaver, tmp_path: Path) -> None:
    saver.stage(large_pieces(), tmp_path)
    wait_for_files(tmp_path)
    killed = saver.writer_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(
        CheckpointError, match=rf"the process {killed} that writes the part of policy rank 0 ended by si"
    ):
        saver.finish()
    after = tmp_path / "after"
    after.mkdir()
    saver.stage(make_pieces(ROWS), after)
    assert torch.equal(read(after, saver.finish())["matrix"], ROWS)
    assert saver.writer_pid != killed


def test_a_writer_that_stands_still_is_given_up(tmp_path: Path) -> None:
    saver = RankSaver(3, timeout_s=60.0)
    saver.stage(make_pieces(ROWS), tmp_path)
    saver.finish()
    pid = saver.writer_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    saver._timeout_s = 0.5
    for path in tmp_path.iterdir():
        path.unlink()
    saver.stage(make_pieces(ROWS), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"rank 3 had not written its part after 0\.5 s \(checkpoint\.timeout_s\)"
    ):
        saver.finish()
    assert start_ticks(pid) is None  # nobody writes there any more
    saver.close()


def test_a_full_disk_is_named(saver: RankSaver, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        saver.stage(large_pieces(), disk)
        with pytest.raises(
            CheckpointError, match=r"policy rank 0 could not write its part: \S+disk.*: No space left on"
        ):
            saver.finish()
    saver.stage(make_pieces(ROWS), tmp_path)
    assert torch.equal(read(tmp_path, saver.finish())["matrix"], ROWS)


def test_a_directory_that_is_gone_is_named(saver: RankSaver, tmp_path: Path) -> None:
    saver.stage(make_pieces(ROWS), tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"write its part: \S+gone/__0_0\.distcp: No such file or directory"):
        saver.finish()


def test_what_is_abandoned_is_not_written_on(saver: RankSaver, tmp_path: Path) -> None:
    saver.stage(large_pieces(), tmp_path)
    wait_for_files(tmp_path)
    pid = saver.writer_pid
    saver.abandon()
    assert pid is not None
    assert start_ticks(pid) is None
    saver.abandon()  # nothing is being written
    with pytest.raises(RuntimeError, match="finish before stage"):
        saver.finish()


def test_one_save_at_a_time(saver: RankSaver, tmp_path: Path) -> None:
    saver.stage(make_pieces(ROWS), tmp_path)
    with pytest.raises(RuntimeError, match="stage before the save before was finished"):
        saver.stage(make_pieces(ROWS), tmp_path)
    saver.finish()


def test_memory_that_is_not_there_is_an_error() -> None:
    said = (
        r"no host memory for the 1099511627776 MiB that a policy rank copies before it goes on \(\d+ MiB are available"
    )
    with pytest.raises(CheckpointError, match=said):
        StagingMemory(1 << 60)


RANK = """
import os, sys, torch
from pathlib import Path
from megarl.checkpoint.rank_saver import RankSaver
from tests.checkpoint.test_rank_saver import large_pieces, wait_for_files

saver = RankSaver(0, timeout_s=60.0)
saver.stage(large_pieces(), Path(sys.argv[1]))
wait_for_files(Path(sys.argv[1]))
print(saver.writer_pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_writer_ends_with_its_rank(tmp_path: Path) -> None:
    """However that ends, and whatever the writer is busy with."""
    place = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", RANK, str(tmp_path)], capture_output=True, text=True, cwd=place, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 10
    while start_ticks(int(done.stdout)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_messages_come_back() -> None:
    staged, num_bytes = plan_staging(make_pieces(ROWS))
    assert num_bytes == 192
    request = WriteRequest(directory="/run/step", rank=7, pieces=staged)
    assert WriteRequest.parse(request.as_line()) == replace(request, pieces=list(staged))
    for reply in (Done({"files": {}}), Failed("no room")):
        assert parse_reply(reply_line(reply)) == reply
    with pytest.raises(ValueError, match=r"a checkpoint's writer process answered b'.\"x\": 1\}"):
        parse_reply(b'{"x": 1}\n')
