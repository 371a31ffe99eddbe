"""The index of a sharded Hugging Face checkpoint, and whether a file of one is there at all."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from megarl.checkpoint.errors import CheckpointError, list_faults
from megarl.checkpoint.names import is_plain_name


def is_there(file: Path) -> bool:
    """CheckpointError for a link that leads nowhere, as in a cache of Hugging Face's whose blobs are gone."""
    if file.is_symlink() and not file.exists():
        raise CheckpointError(
            f"{file} is a link to {file.readlink()}, which is not there; download the checkpoint again"
        )
    return file.exists()


def read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by its name; CheckpointError for what is no index, names a tensor twice, or leads out of
    the directory."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_object)["weight_map"]
        located = list(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index (a JSON object with weight_map): {error!r}; restore the file"
        ) from error
    bad = [f"{name} (in {file!r})" for name, file in located if not is_plain_name(file)]
    if bad or not located:
        found = f"\n  {list_faults(bad)}\n" if bad else "none. "
        raise CheckpointError(f"{index}: expected tensors in files beside it, found {found}Restore the file")
    return dict(located)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"it names {', '.join(twice[:8])} twice")
    return dict(pairs)
