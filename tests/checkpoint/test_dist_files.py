"""Files of torch.distributed.checkpoint: written here, read by torch; written by torch, read here; and damaged."""

import dataclasses
import json
import os
import pickle
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megarl.checkpoint.coverage import coverage_fault
from megarl.checkpoint.dist_format import Chunk, Contents, StoredTensor, pickle_contents
from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.dist_writer import DistWriter, Written, checksum_of, finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from tests.checkpoint.mounts import tmpfs


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers": torch.randn(3, 12, 10, generator=generator).bfloat16(),
        "rows": torch.randn(40, 6, generator=generator),
        "vector": torch.randn(17, generator=generator),
    }


CUTS = {
    "layers": [((layer, row, 0), (1, 6, 10)) for layer in range(3) for row in (0, 6)],
    "rows": [((0, 0), (40, 2)), ((0, 2), (13, 4)), ((13, 2), (1, 3)), ((13, 5), (1, 1)), ((14, 2), (26, 4))],
    "vector": [((5,), (12,)), ((0,), (5,))],
}
"""Grids, columns, and the pieces of a flat share."""


def write(directory: Path, tensors: dict[str, torch.Tensor], *, ranks: int = 2, **options) -> dict:
    """Chunks dealt out to the ranks; returns the records of the files."""
    directory.mkdir()
    written = []
    chunks = [(key, *chunk) for key in tensors for chunk in CUTS[key]]
    for rank in range(ranks):
        with DistWriter(directory, rank=rank) as writer:
            for key, offsets, sizes in chunks[rank::ranks]:
                index = tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))
                writer.write(key, tensors[key][index], shape=tuple(tensors[key].shape), offsets=offsets)
            written.append(Written(**json.loads(json.dumps(dataclasses.asdict(writer.finish())))))
    return finish_dist_checkpoint(directory, written, **options)


def read_all(directory: Path, **options) -> dict[str, torch.Tensor]:
    with open_dist_checkpoint(directory, **options) as checkpoint:
        return {
            key: checkpoint.read(key, (0,) * len(tensor.shape), tensor.shape)
            for key, tensor in checkpoint.tensors.items()
        }


def test_torch_reads_what_is_written_here(tmp_path):
    tensors = make_tensors()
    write(tmp_path / "a", tensors)
    found = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    dcp.load(found, checkpoint_id=tmp_path / "a", no_dist=True)
    for key, tensor in tensors.items():
        assert torch.equal(found[key], tensor), key


def test_torchs_own_tool_makes_one_file_of_it(tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    tensors = make_tensors()
    write(tmp_path / "a", tensors)
    dcp_to_torch_save(tmp_path / "a", tmp_path / "whole.pt")
    found = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_what_torch_writes_is_read_here(tmp_path):
    tensors = make_tensors() | {"turned": torch.arange(12.0).reshape(3, 4).t(), "count": torch.tensor(7.0)}
    dcp.save(dict(tensors), checkpoint_id=tmp_path / "a", no_dist=True)
    found = read_all(tmp_path / "a", verify=True)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_a_checkpoint_without_checksums_in_its_archives_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write(tmp_path / "a", make_tensors())
    finally:
        torch.serialization.set_crc32_options(before)
    assert all(torch.equal(value, make_tensors()[key]) for key, value in read_all(tmp_path / "a", verify=True).items())


def test_any_box_is_read_into_any_memory(tmp_path):
    tensors = make_tensors()
    write(tmp_path / "a", tensors)
    generator = torch.Generator().manual_seed(1)
    with open_dist_checkpoint(tmp_path / "a") as checkpoint:
        for key, tensor in tensors.items():
            for _ in range(40):
                bounds = [
                    sorted(torch.randint(0, size + 1, (2,), generator=generator).tolist()) for size in tensor.shape
                ]
                low, sizes = tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)
                expected = tensor[tuple(slice(a, b) for a, b in bounds)]
                assert torch.equal(checkpoint.read(key, low, sizes), expected)
                memory = torch.zeros(*(size + 3 for size in sizes), dtype=tensor.dtype)
                out = memory[tuple(slice(1, 1 + size) for size in sizes)]
                checkpoint.read(key, low, sizes, out=out)
                assert torch.equal(out, expected)
                assert memory.count_nonzero() == expected.count_nonzero()


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_of_a_large_chunk_only_what_is_asked_for_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    tensor = torch.arange(16 << 20, dtype=torch.float32).reshape(16384, 1024)
    with DistWriter(tmp_path / "a", rank=0) as writer:
        writer.write("large", tensor, shape=(16384, 1024), offsets=(0, 0))
        finish_dist_checkpoint(tmp_path / "a", [writer.finish()])
    with open_dist_checkpoint(tmp_path / "a") as checkpoint:
        before = bytes_read()
        found = checkpoint.read("large", (9000, 0), (100, 1024))
        assert bytes_read() - before < 2 * found.nbytes
        assert torch.equal(found, tensor[9000:9100])


def test_a_part_of_a_tensor_is_stored_without_the_rest(tmp_path):
    (tmp_path / "a").mkdir()
    tensor = torch.zeros(1000, 1000)
    with DistWriter(tmp_path / "a", rank=0) as writer:
        writer.write("part", tensor[:1], shape=(1, 1000), offsets=(0, 0))
        assert writer.finish().num_bytes < 2 * 4000


def test_a_full_disk_says_so(tmp_path):
    with tmpfs(tmp_path / "disk", size="2m") as disk:
        writer = DistWriter(disk, rank=0)
        with pytest.raises(OSError, match="No space left on device"), writer:
            writer.write("large", torch.zeros(2 << 20), shape=(2 << 20,), offsets=(0,))


def test_ctrl_c_within_a_write_is_ctrl_c(tmp_path):
    """torch.save makes a RuntimeError of it."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    class Interrupted:
        def update(self, content):
            signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with DistWriter(tmp_path, rank=0) as writer:
            writer._open()._digest = Interrupted()
            with pytest.raises(KeyboardInterrupt):
                writer.write("a", torch.zeros(4), shape=(4,), offsets=(0,))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_files_end_and_are_numbered_as_asked(tmp_path):
    (tmp_path / "a").mkdir()
    written = []
    for first in range(2):
        with DistWriter(tmp_path / "a", rank=3, first=first, stride=2, file_bytes=1) as writer:
            for row in (first, first + 2):
                writer.write("rows", torch.full((1, 4), float(row)), shape=(4, 4), offsets=(row, 0))
            written.append(writer.finish())
    assert [sorted(part.files) for part in written] == [
        ["__3_0.distcp", "__3_2.distcp"],
        ["__3_1.distcp", "__3_3.distcp"],
    ]
    finish_dist_checkpoint(tmp_path / "a", written)
    assert torch.equal(read_all(tmp_path / "a")["rows"], torch.arange(4.0)[:, None].expand(4, 4))


def test_every_file_has_its_size_and_checksum(tmp_path):
    files = write(tmp_path / "a", make_tensors(), objects=["module._extra_state/shard_0_1"], common={"step": 3})
    assert files.keys() == {path.name for path in (tmp_path / "a").iterdir()}
    for name, record in files.items():
        path = tmp_path / "a" / name
        assert record == {"bytes": path.stat().st_size, "checksum": checksum_of(path)}
    assert torch.load(tmp_path / "a" / "common.pt", weights_only=True) == {"step": 3}
    with open_dist_checkpoint(tmp_path / "a") as checkpoint:
        assert list(checkpoint.objects) == ["module._extra_state/shard_0_1"]
        (tmp_path / "object.pt").write_bytes(checkpoint.read_object("module._extra_state/shard_0_1"))
        assert torch.load(tmp_path / "object.pt", weights_only=True) == [None]


@pytest.mark.parametrize(
    ("rectangles", "words"),
    [
        ([((0, 0), (4, 6))], None),
        ([((0, 0), (2, 6)), ((2, 0), (2, 6))], None),
        # Neither rows nor columns split it: around a middle, each arm past the next.
        ([((0, 0), (1, 5)), ((0, 5), (3, 1)), ((3, 1), (1, 5)), ((1, 0), (3, 1)), ((1, 1), (2, 4))], None),
        ([((0, 0), (1, 5)), ((0, 5), (3, 1)), ((3, 1), (1, 5)), ((1, 0), (3, 1)), ((1, 1), (2, 5))], "overlap"),
        ([((0, 0), (2, 6))], "12 of 24"),
        ([((0, 0), (2, 6)), ((1, 0), (3, 6))], r"\[0, 0\] and \[1, 0\] overlap"),
        ([((0, 0), (4, 6)), ((0, 0), (4, 6))], "overlap"),
        ([((0, 0), (4, 7))], r"outside \[4, 6\]"),
        ([((0,), (4,))], "outside"),
    ],
)
def test_coverage(rectangles, words):
    fault = coverage_fault((4, 6), rectangles)
    assert (fault is None) if words is None else re.search(words, fault or "")


def test_a_hundred_thousand_chunks_are_compared_in_seconds():
    """80 layers of 8 tensor ranks of 160 data ranks' shares."""
    rows = 1280
    chunks = [((layer, row, 0), (1, 1, 8)) for layer in range(80) for row in range(rows)]
    assert coverage_fault((80, rows, 8), chunks) is None
    assert "overlap" in (coverage_fault((80, rows, 8), [*chunks, ((79, rows - 1, 7), (1, 1, 1))]) or "")


def test_what_writers_disagree_about_is_no_checkpoint(tmp_path):
    (tmp_path / "a").mkdir()
    with DistWriter(tmp_path / "a", rank=0) as writer:
        writer.write("dtypes", torch.zeros(2), shape=(4,), offsets=(0,))
        writer.write("dtypes", torch.zeros(2).bfloat16(), shape=(4,), offsets=(2,))
        writer.write("hole", torch.zeros(2), shape=(4,), offsets=(0,))
        writer.write("whole", torch.zeros(4), shape=(4,), offsets=(0,))
        written = writer.finish()
    with pytest.raises(CheckpointError) as error:
        finish_dist_checkpoint(tmp_path / "a", [written])
    assert "dtypes [4]: written as bfloat16 [4] and as float32 [4]" in str(error.value)
    assert "hole [4]: chunks hold 2 of 4 elements" in str(error.value)
    assert "whole" not in str(error.value)
    assert not (tmp_path / "a" / ".metadata").exists()


def flip_byte_of(directory: Path, key: str) -> str:
    """Change a byte in the middle of a chunk's elements; returns its file."""
    with open_dist_checkpoint(directory) as checkpoint:
        tensor = checkpoint.tensors[key]
        checkpoint.read(key, (0,) * len(tensor.shape), tensor.shape)
        chunk = tensor.chunks[0]
        place = checkpoint._places[chunk]
    with (directory / chunk.file).open("r+b") as stream:
        stream.seek(place.begin + place.num_bytes // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    return chunk.file


def test_a_flipped_byte_is_found_where_it_is(tmp_path):
    write(tmp_path / "a", make_tensors())
    file = flip_byte_of(tmp_path / "a", "rows")
    with pytest.raises(CheckpointError, match=rf"{file}: rows at \[0, 0\] is damaged: its bytes have the CRC"):
        read_all(tmp_path / "a", verify=True)


def test_missing_and_truncated_files_are_named_with_a_tensor(tmp_path):
    write(tmp_path / "a", make_tensors(), ranks=3)
    (tmp_path / "a" / "__0_0.distcp").unlink()
    size = (tmp_path / "a" / "__2_0.distcp").stat().st_size
    os.truncate(tmp_path / "a" / "__2_0.distcp", size - 1)
    with pytest.raises(CheckpointError) as error:
        open_dist_checkpoint(tmp_path / "a")
    assert "missing: __0_0.distcp, with " in str(error.value)
    assert f"truncated: __2_0.distcp has {size - 1} bytes; " in str(error.value)
    assert "__1_0" not in str(error.value)


def test_a_file_that_loses_its_end_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    write(tmp_path / "a", {"rows": make_tensors()["rows"]}, ranks=1)
    with open_dist_checkpoint(tmp_path / "a") as checkpoint:
        checkpoint.read("rows", (0, 0), (40, 6))
        os.truncate(tmp_path / "a" / "__0_0.distcp", 1000)
        with pytest.raises(CheckpointError, match=r"__0_0.distcp: rows at .*is damaged: the file ends at byte 1000"):
            checkpoint.read("rows", (0, 0), (40, 6))


def test_garbage_and_nothing(tmp_path):
    write(tmp_path / "a", make_tensors())
    metadata = tmp_path / "a" / ".metadata"
    content = metadata.read_bytes()
    for damage in (b"", b"no pickle", content[: len(content) // 2]):
        metadata.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
            open_dist_checkpoint(tmp_path / "a")
    metadata.unlink()
    with pytest.raises(CheckpointError, match="found none; it is not complete"):
        open_dist_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match="expected sharded_backend \"torch_dist\", found 'zarr'"):
        open_dist_checkpoint(tmp_path / "a")


class Command:
    """What a hostile pickle would run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"names posix\.system.*could run code"):
        open_dist_checkpoint(tmp_path)
    # The same within a chunk.
    torch.save([torch.zeros(4), Command(tmp_path / "ran")], tmp_path / "__0_0.distcp")
    chunk = Chunk((0,), (4,), "__0_0.distcp", 0, (tmp_path / "__0_0.distcp").stat().st_size)
    stored = {"rows": StoredTensor("rows", (4,), torch.float32, (chunk,))}
    (tmp_path / ".metadata").write_bytes(pickle_contents(Contents(stored, {})))
    with (
        open_dist_checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"rows at \[0\] is damaged: its pickle names posix\.system"),
    ):
        checkpoint.read("rows", (0,), (4,))
    assert not (tmp_path / "ran").exists()


def test_a_path_that_leads_out_of_the_directory_is_refused(tmp_path):
    write(tmp_path / "a", {"rows": make_tensors()["rows"]}, ranks=1)
    content = (tmp_path / "a" / ".metadata").read_bytes()
    (tmp_path / "a" / ".metadata").write_bytes(content.replace(b"__0_0.distcp", b"../../x.dist"))
    with pytest.raises(CheckpointError, match="which is no file of the directory"):
        open_dist_checkpoint(tmp_path / "a")
