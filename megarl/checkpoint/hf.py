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

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_shards import FLOAT_DTYPES, INDEX_FILE, SINGLE_FILE
from megarl.checkpoint.hf_writer import save_hf_checkpoint
from megarl.models.family import EMBEDDING, OUTPUT
from megarl.models.table import Box

__all__ = ["CheckpointError", "HfCheckpoint", "open_hf_checkpoint", "save_hf_checkpoint"]

MAPPED_BYTES = 64 << 20
"""Read from mapped files before they are mapped anew."""

COMPARED_ROWS = 16384
"""Rows of a tied lm_head compared at a time, to bound memory."""


def open_hf_checkpoint(path: str | Path) -> "HfCheckpoint":
    """Open the safetensors checkpoint in directory `path`; reads headers only.

    Raises CheckpointError when there is no checkpoint, the index is broken, or a file is missing, truncated or corrupt.
    """
    directory = Path(path)
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if index.exists():
        weight_map = _read_weight_map(index)
        files = {name: set(_open_file(directory / name).keys()) for name in sorted(set(weight_map.values()))}
        absent = [f"{name} (in {file})" for name, file in weight_map.items() if name not in files[file]]
        if absent:
            raise CheckpointError(
                f"{index} lists tensors that its files do not hold: {', '.join(absent[:8])}; "
                "download or export the checkpoint again"
            )
        unlisted = [f"{name} (in {file})" for file, names in files.items() for name in names - weight_map.keys()]
        if unlisted:
            raise CheckpointError(
                f"{index} does not list tensors that its files hold: {', '.join(sorted(unlisted)[:8])}; "
                "download or export the checkpoint again"
            )
        return HfCheckpoint(directory, weight_map)
    if single.exists():
        return HfCheckpoint(directory, dict.fromkeys(_open_file(single).keys(), SINGLE_FILE))
    raise CheckpointError(
        f"expected {SINGLE_FILE} or {INDEX_FILE} in {directory}, found {_list_weights(directory)}; convert the model "
        "to safetensors (transformers: from_pretrained, then save_pretrained)"
    )


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
        """Compare with `hf_tensors(shape)`: CheckpointError lists every missing, unexpected and misshapen tensor.

        Two extras are accepted: RoPE frequencies, which older checkpoints store, and an lm_head beside tied
        embeddings when it equals them.
        """
        problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in self._located]
        for name in self.names():
            if name in expected:
                problems += self._check_tensor(name, expected[name])
            elif name == OUTPUT and EMBEDDING in expected:
                problems += self._check_tied_output()
            elif not name.endswith("rotary_emb.inv_freq"):
                problems.append(f"unexpected: {name} {self.shape(name)}")
        if problems:
            listed = "\n  ".join(problems)
            raise CheckpointError(
                f"{self.directory} does not hold the model its config.json describes; {len(problems)} differences:\n"
                f"  {listed}\nUse the weights that belong to this config.json, or correct config.json "
                "(sizes, tie_word_embeddings)."
            )

    def _check_tensor(self, name: str, expected: tuple[int, ...]) -> list[str]:
        problems = []
        if self.shape(name) != expected:
            problems.append(f"wrong shape: {name}: expected {expected}, found {self.shape(name)}")
        dtype = self._slice(name).get_dtype()
        if dtype not in FLOAT_DTYPES:
            problems.append(f"wrong dtype: {name}: expected one of {', '.join(FLOAT_DTYPES)}, found {dtype}")
        return problems

    def _check_tied_output(self) -> list[str]:
        if EMBEDDING not in self._located:
            return []  # reported as missing
        if self.shape(OUTPUT) != self.shape(EMBEDDING):
            return [f"unexpected: {OUTPUT} {self.shape(OUTPUT)} beside tied embeddings {self.shape(EMBEDDING)}"]
        length, width = self.shape(OUTPUT)
        for low in range(0, length, COMPARED_ROWS):
            start, stop = (low, 0), (min(length, low + COMPARED_ROWS), width)
            if not torch.equal(self.read(Box(OUTPUT, start, stop)), self.read(Box(EMBEDDING, start, stop))):
                return [f"unexpected: {OUTPUT} differs from {EMBEDDING}, but tie_word_embeddings is true"]
        return []

    def _slice(self, name: str) -> Any:
        if name not in self._located:
            raise CheckpointError(f"{self.directory} has no tensor {name} (or was closed); run validate() first")
        file = self._located[name]
        if file not in self._files:
            self._files[file] = _open_file(self.directory / file)
        return self._files[file].get_slice(name)


def _open_file(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is named by {INDEX_FILE} but absent; download or export the checkpoint again"
        ) from None
    except (SafetensorError, OSError) as error:
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
            header = json.loads(stream.read(min(length, size)))
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
    lost = sorted(name for name, end in ends.items() if end > size)
    return f" (lost: {', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''})" if lost else ""


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index (a JSON object with weight_map): {error!r}; restore the file"
        ) from error


def _list_weights(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory"
    suffixes = (".bin", ".pt", ".pth", ".gguf", ".safetensors")
    found = sorted(file.name for file in directory.iterdir() if file.suffix in suffixes)
    return ", ".join(found[:5]) or "no weights"
