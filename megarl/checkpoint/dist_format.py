"""Files of a torch.distributed.checkpoint, as Megatron-core's `torch_dist` has them, and what their `.metadata` says.

    .metadata            pickle of torch.distributed.checkpoint.metadata.Metadata: every tensor's shape, dtype and
                         chunks, and where in which file a chunk lies
    __<rank>_<n>.distcp  chunks one after the other, each what torch.save makes of a tensor
    metadata.json        Megatron's: which formats these are
    common.pt            Megatron's: torch.save of a dictionary, what is the same on all ranks

A pickle can run code. Here only stand-ins for the classes of torch.distributed.checkpoint's own metadata are made from
it, so that a stranger's checkpoint cannot.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.names import is_plain_name

METADATA_FILE, CONFIG_FILE, COMMON_FILE = ".metadata", "metadata.json", "common.pt"

CONFIG = {"sharded_backend": "torch_dist", "sharded_backend_version": 1} | {
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""What metadata.json says (megatron.core.dist_checkpointing.core.CheckpointingConfig)."""

_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # Megatron keeps the ranks' plans beside the metadata.
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}
"""What a `.metadata` may name, by module; torch.Size, OrderedDict and dtypes besides."""

_MEGATRONS = {"MCoreMetadata", "MCoreSavePlan"}
"""Megatron-core before 0.15 subclassed two of these classes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A rectangle of a stored tensor: the bytes [offset, offset + length) of `file`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint; its chunks in no order."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What is no tensor: torch.save of a list with one object, in bytes [offset, offset + length) of `file`."""

    key: str
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds, by key."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, StoredObject]


def read_contents(directory: Path) -> Contents:
    """What `.metadata` says; CheckpointError where there is none, or it is damaged, or it names what it must not."""
    _check_config(directory / CONFIG_FILE)
    file = directory / METADATA_FILE
    try:
        with file.open("rb") as stream:
            metadata = _Unpickler(stream).load()
        return _contents(metadata)
    except FileNotFoundError:
        raise CheckpointError(
            f"expected a torch.distributed.checkpoint with {METADATA_FILE} in {directory}, found none; it is not "
            "complete, or another directory is meant"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); restore it from a copy of the checkpoint"
        ) from error


def pickle_contents(contents: Contents) -> bytes:
    """The content of `.metadata`."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo

    state: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    for tensor in contents.tensors.values():
        boxes = [(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
        state[tensor.key] = dcp.TensorStorageMetadata(
            properties=dcp.TensorProperties(dtype=tensor.dtype),
            size=torch.Size(tensor.shape),
            chunks=[dcp.ChunkStorageMetadata(offsets=offsets, sizes=sizes) for offsets, sizes in boxes],
        )
        for index, chunk in enumerate(tensor.chunks):
            place = dcp.MetadataIndex(tensor.key, chunk.offsets, index)
            storage[place] = _StorageInfo(chunk.file, chunk.offset, chunk.length)
    for stored in contents.objects.values():
        state[stored.key] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(stored.key)] = _StorageInfo(stored.file, stored.offset, stored.length)
    # The path of each key in a state dict, which here has one level; torch's own tools look it up.
    paths = {key: (key,) for key in state}
    metadata = dcp.Metadata(state, planner_data=paths, storage_data=storage, version=CURRENT_DCP_VERSION)
    metadata.storage_meta = dcp.StorageMeta()
    return pickle.dumps(metadata)


def _check_config(file: Path) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["sharded_backend"]
    except FileNotFoundError:
        return  # torch's own, without Megatron
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no Megatron-core metadata.json ({error!r}); restore the file") from error
    if found != CONFIG["sharded_backend"]:
        raise CheckpointError(
            f'{file}: expected sharded_backend "torch_dist", found {found!r}; save the checkpoint in that format'
        )


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("torch", "Size"), ("collections", "OrderedDict")}:
            return super().find_class(module, name)
        if name in _CLASSES.get(module, ()) or (module.startswith("megatron.core.") and name in _MEGATRONS):
            return type(name, (_Properties if name == "TensorProperties" else _Record,), {})
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise CheckpointError(
            f"it names {module}.{name}, which is none of torch.distributed.checkpoint's classes and could run code; "
            "do not load this file with anything else before you know where it is from"
        )


class _Record:
    """Stands for an object of any of these classes: it gets the attributes, and does nothing. Not the class itself, on
    which a pickle could set attributes as well."""

    offset: Any = None  # of an index that has none it is not pickled

    def __init__(self, *_: Any) -> None:
        return


class _Properties(_Record):
    """Stands for a TensorProperties, which is pickled as a tuple."""

    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state["dtype"] if isinstance(state, dict) else state[0]


def _contents(metadata: Any) -> Contents:
    places = {(index.fqn, _offset(index.offset)): info for index, info in metadata.storage_data.items()}
    tensors, objects = {}, {}
    for key, stored in metadata.state_dict_metadata.items():
        if not isinstance(key, str):
            raise CheckpointError(f"it has {key!r} in the place of a name; restore it from a copy of the checkpoint")
        if not hasattr(stored, "chunks"):
            objects[key] = StoredObject(key, *_place(places.get((key, None)), key))
            continue
        if not isinstance(stored.properties.dtype, torch.dtype):
            raise CheckpointError(f"{key} has the dtype {stored.properties.dtype!r}; restore it from a copy")
        chunks = []
        for chunk in stored.chunks:
            offsets = _numbers(chunk.offsets)
            place = _place(places.get((key, offsets)), f"{key} at {list(offsets)}")
            chunks.append(Chunk(offsets, _numbers(chunk.sizes), *place))
        tensors[key] = StoredTensor(key, _numbers(stored.size), stored.properties.dtype, tuple(chunks))
    return Contents(tensors, objects)


def _offset(found: Any) -> tuple[int, ...] | None:
    return None if found is None else _numbers(found)


def _numbers(found: Any) -> tuple[int, ...]:
    """Offsets or sizes, which arithmetic of 64 bits is made with; whether they fit together is asked elsewhere."""
    numbers = tuple(found)
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise CheckpointError(f"it has {list(numbers)} in the place of sizes; restore it from a copy of the checkpoint")
    return numbers


def _place(info: Any, what: str) -> tuple[str, int, int]:
    """(file, offset, length) of a chunk or an object."""
    if info is None:
        raise CheckpointError(f"{what} has no place in any file; the checkpoint is incomplete: save it again")
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(f"{what} is stored compressed or encrypted; save the checkpoint without transforms")
    file, (offset, length) = info.relative_path, _numbers((info.offset, info.length))
    if not is_plain_name(file):
        raise CheckpointError(f"{what} lies in {file!r}, which is no file of the directory; it is no checkpoint")
    return file, offset, length
