"""Reading Hugging Face checkpoints: safetensors, single or sharded.

Invariants: `read` touches only the bytes of its box, in the dtype of the file; a checkpoint that passed `validate` has
every expected tensor in the expected shape and nothing else that could change the model. Files are mapped, and mapped
anew before the pages that were read amount to much: a page counts as memory of the process until then.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megarl.checkpoint.errors import CheckpointError, is_out_of_memory, list_by_kind
from megarl.checkpoint.hf_index import is_there, read_weight_map
from megarl.checkpoint.hf_shards import FLOAT_DTYPES, INDEX_FILE, SINGLE_FILE
from megarl.checkpoint.hf_writer import save_hf_checkpoint
from megarl.models.family import EMBEDDING, OUTPUT
from megarl.models.table import Box

__all__ = ["CheckpointError", "HfCheckpoint", "open_hf_checkpoint", "save_hf_checkpoint"]

MAPPED_BYTES = 64 << 20
"""Read from mapped files before they are mapped anew."""

OPEN_FILES = 32
"""A checkpoint may have thousands of files, each of which is a descriptor and a mapping; a process may not."""

COMPARED_ELEMENTS = 2 << 20
"""Of a tied lm_head, compared at a time, to bound memory."""

HEADER_BYTES = 100_000_000
"""The longest header that safetensors reads."""


def open_hf_checkpoint(path: str | Path) -> "HfCheckpoint":
    """Open the safetensors checkpoint in directory `path`; reads headers only.

    Raises CheckpointError when there is no checkpoint, the index is broken or says other than its files, or a file is
    missing, truncated or corrupt.
    """
    directory = Path(path)
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if is_there(index):
        weight_map = read_weight_map(index)
        if is_there(single) and SINGLE_FILE not in weight_map.values():
            raise CheckpointError(
                f"{directory} has weights twice, in {SINGLE_FILE}, which transformers loads, and in the files of "
                f"{INDEX_FILE}, which vLLM loads; remove the one that is not meant"
            )
        return HfCheckpoint(directory, _check_located(index, weight_map))
    if is_there(single):
        return HfCheckpoint(directory, dict.fromkeys(_open_file(single).keys(), SINGLE_FILE))
    raise CheckpointError(
        f"expected {SINGLE_FILE} or {INDEX_FILE} in {directory}, found {_list_weights(directory)}; convert the model "
        "to safetensors (transformers: from_pretrained, then save_pretrained)"
    )


def _check_located(index: Path, weight_map: dict[str, str]) -> dict[str, str]:
    """`weight_map`, whose files hold what it says, and nothing else. Every file is opened."""
    files, faults = {}, []
    for file in sorted(set(weight_map.values())):
        try:
            files[file] = set(_open_file(index.parent / file).keys())
        except CheckpointError as error:
            faults.append(("file", str(error)))
    for name, file in weight_map.items():
        if name not in files.get(file, {name}):
            faults.append(("listed and not held", f"{name} (in {file})"))
    for file, names in files.items():
        for name in sorted(names):
            if name not in weight_map:
                faults.append(("held and not listed", f"{name} (in {file})"))
            elif weight_map[name] != file:
                faults.append(("held twice", f"{name} (in {file}, listed in {weight_map[name]})"))
    if faults:
        raise CheckpointError(
            f"{index} and its files do not fit together:\n  {list_by_kind(faults)}\n"
            "Download or export the checkpoint again"
        )
    return weight_map


class HfCheckpoint:
    """An open checkpoint. The files stay memory-mapped until `close` or the end of a `with` block."""

    def __init__(self, directory: Path, located: Mapping[str, str]) -> None:
        """located: the file of each tensor."""
        self.directory = directory
        self._located = dict(located)
        self._files: dict[str, Any] = {}
        self._read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the files; reading afterwards is an error."""
        self._located.clear()
        self._files.clear()

    def names(self) -> tuple[str, ...]:
        """Names of all tensors in the files, sorted."""
        return tuple(sorted(self._located))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Of a checkpoint that passed `validate`."""
        return FLOAT_DTYPES[self._slice(name).get_dtype()]

    def read(self, box: Box) -> Tensor:
        """The elements of `box`, of the box's shape and the file's dtype, on the CPU; only its bytes are read."""
        view = self._slice(box.tensor)
        found = tuple(view.get_shape())
        if not box.fits(found):
            raise CheckpointError(f"{self.directory}: {box} lies outside {box.tensor} of shape {found}; run validate()")
        try:
            values: Tensor = view[box.slices]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.directory}: reading {box} failed ({error}); restore the file") from error
        self._read_bytes += values.nbytes
        if self._read_bytes > MAPPED_BYTES:
            self._files.clear()
            self._read_bytes = 0
        return values

    def validate(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with `hf_tensors(shape)`: CheckpointError lists missing, unexpected and misshapen tensors.

        Two extras are accepted: RoPE frequencies, which older checkpoints store, and an lm_head beside tied
        embeddings when it equals them.
        """
        faults = [("missing", f"{name} {shape}") for name, shape in expected.items() if name not in self._located]
        for name in self.names():
            if name in expected:
                faults += self._check_tensor(name, expected[name])
            elif name == OUTPUT and EMBEDDING in expected:
                faults += self._check_tied_output(expected[EMBEDDING])
            elif not name.endswith("rotary_emb.inv_freq"):
                faults.append(("unexpected", f"{name} {self.shape(name)}"))
        if faults:
            raise CheckpointError(
                f"{self.directory} does not hold the model its config.json describes; {len(faults)} differences:\n"
                f"  {list_by_kind(faults)}\nUse the weights that belong to this config.json, or correct config.json "
                "(sizes, tie_word_embeddings)."
            )

    def _check_tensor(self, name: str, expected: tuple[int, ...]) -> list[tuple[str, str]]:
        faults = []
        if self.shape(name) != expected:
            faults.append(("wrong shape", f"{name}: expected {expected}, found {self.shape(name)}"))
        dtype = self._slice(name).get_dtype()
        if dtype not in FLOAT_DTYPES:
            faults.append(("wrong dtype", f"{name}: expected one of {', '.join(FLOAT_DTYPES)}, found {dtype}"))
        return faults

    def _check_tied_output(self, expected: tuple[int, ...]) -> list[tuple[str, str]]:
        """An lm_head beside tied embeddings; where one of the two is not what it should be, that is said."""
        found = self._check_tensor(OUTPUT, expected)
        if found or EMBEDDING not in self._located or self._check_tensor(EMBEDDING, expected):
            return found
        length, width = expected
        rows = max(1, COMPARED_ELEMENTS // width)
        for low in range(0, length, rows):
            start, stop = (low, 0), (min(length, low + rows), width)
            # Their dtypes may differ.
            first, second = (self.read(Box(name, start, stop)).double() for name in (OUTPUT, EMBEDDING))
            if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
                return [("unexpected", f"{OUTPUT} differs from {EMBEDDING}, but tie_word_embeddings is true")]
        return []

    def _slice(self, name: str) -> Any:
        if name not in self._located:
            raise CheckpointError(f"{self.directory} has no tensor {name} (or was closed); run validate() first")
        file = self._located[name]
        if file not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files)))
            self._files[file] = _open_file(self.directory / file)
        return self._files[file].get_slice(name)


def _open_file(file: Path) -> Any:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{file}: safetensors opens no path that is not UTF-8; rename the directory") from None
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except FileNotFoundError:
        what = f"a link to {file.readlink()}, which is not there" if file.is_symlink() else "not there"
        raise CheckpointError(f"{file} is {what}; download or export the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{file} cannot be mapped ({error})") from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{file} cannot be read ({error}); make it readable, or restore it") from error
        size = file.stat().st_size
        raise CheckpointError(
            f"{file} ({size} bytes) is truncated or corrupt: {error}{_lost_tensors(file, size)}; download or export "
            "this file again"
        ) from error


def _lost_tensors(file: Path, size: int) -> str:
    """Which tensors a truncated file has lost, where its header can be read."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < min(size, HEADER_BYTES) else {}
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        lost = sorted(name for name, end in ends.items() if end > size)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return ""
    return f" (lost: {', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''})" if lost else ""


def _list_weights(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory"
    suffixes = (".bin", ".pt", ".pth", ".gguf", ".safetensors")
    found = sorted(file.name for file in directory.iterdir() if file.suffix in suffixes)
    return ", ".join(found[:5]) or "no weights"
