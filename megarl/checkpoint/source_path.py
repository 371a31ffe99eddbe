"""Which checkpoint a path means that a person gave: a checkpoint itself, a run, or what Megatron's training saves into.

A run's checkpoint is believed as everywhere: by its manifest, and by the sizes that this lists.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megarl.checkpoint.dist_format import METADATA_FILE
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_shards import INDEX_FILE, SINGLE_FILE
from megarl.checkpoint.manifest import MANIFEST_FILE
from megarl.checkpoint.new_directory import partial_of
from megarl.checkpoint.run_checkpoint import RunCheckpoint, list_checkpoints

Kind = Literal["hf", "dist"]

_CHECKPOINTS, _LATEST = "checkpoints", "latest"
_TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's: the number of the last iteration that was saved, or "release"."""
_UNFINISHED = re.compile(r"\..+\.(partial|replaced)")
_OF_A_RUN = re.compile(r"step-\d{6,}")


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint that is complete as far as its names and sizes say."""

    path: Path
    kind: Kind
    of_run: RunCheckpoint | None
    """Where a run saved it."""


def find_checkpoint(path: Path) -> FoundCheckpoint:
    """The checkpoint at `path`; the newest where that is a run, RUN/latest, RUN/checkpoints, or what Megatron saves
    into. CheckpointError, with what is there instead, where there is none or no complete one."""
    if path.name == _LATEST and not path.exists() and (path.parent / _CHECKPOINTS).is_dir():
        path = path.parent
    if not path.is_dir():
        raise CheckpointError(f"expected a checkpoint's directory, found {_describe(path)} at {path}; correct the path")
    if _UNFINISHED.fullmatch(path.resolve().name):
        raise CheckpointError(
            f"{path} is being written, or its writing was cut short: it may lack anything. Wait for it to get its "
            "name, or use another"
        )
    if is_dist_checkpoint(path) or (path / MANIFEST_FILE).is_file():
        return _dist(path)
    if (path / _TRACKER).is_file():
        return _dist(_last_iteration(path))
    if (path / "config.json").exists():
        return FoundCheckpoint(path, "hf", None)
    checkpoints = path if path.name == _CHECKPOINTS else path / _CHECKPOINTS
    if checkpoints.is_dir() or (path / "state.json").is_file():
        return _newest(checkpoints)
    _refuse_others(path)
    return FoundCheckpoint(path, "hf", None)


def is_dist_checkpoint(path: Path) -> bool:
    """Whether `path` is a torch.distributed.checkpoint."""
    return (path / METADATA_FILE).is_file()


def check_apart(source: Path, target: Path) -> None:
    """CheckpointError where writing `target` would change or remove `source`, which stays as it is."""
    own, new = source.resolve(), target.resolve()
    if own == new:
        raise CheckpointError(f"{target} is the source itself, which stays as it is; write to another path")
    if own in new.parents:
        raise CheckpointError(f"{target} lies in the source {source}, which stays as it is; write to another path")
    if partial_of(new) in (own, *own.parents):
        raise CheckpointError(f"{target} is written in the place where {source} lies; rename one of the two")


def _dist(path: Path) -> FoundCheckpoint:
    resolved = path.resolve()
    in_run = resolved.parent.name == _CHECKPOINTS and (resolved.parent.parent / "state.json").is_file()
    if (path / MANIFEST_FILE).is_file() or (in_run and _OF_A_RUN.fullmatch(resolved.name)):
        found = RunCheckpoint.open(path)
        # Of the tensors' files each chunk has a checksum of its own, which is compared when it is read.
        found.verify(but=".distcp")
        return FoundCheckpoint(path, "dist", found)
    return FoundCheckpoint(path, "dist", None)


def _newest(checkpoints: Path) -> FoundCheckpoint:
    found = list_checkpoints(checkpoints)
    if not found:
        run = checkpoints.parent
        raise CheckpointError(
            f"{run} is a run without a complete checkpoint (`[checkpoint]` says when one is saved); its exported "
            f"weights, which are Hugging Face checkpoints, are in {run / 'hf'}"
        )
    return _dist(found[-1].path)


def _last_iteration(path: Path) -> Path:
    file = path / _TRACKER
    word = file.read_text(encoding="utf-8", errors="replace").strip()
    name = f"iter_{int(word):07d}" if word.isdecimal() else word
    if name != "release" and not word.isdecimal():
        raise CheckpointError(f'{file}: expected a number or "release", found {word[:40]!r}; name the iteration itself')
    if not is_dist_checkpoint(path / name):
        raise CheckpointError(
            f"{file} says {word}, and {path / name} is no complete torch.distributed.checkpoint (it has no "
            f"{METADATA_FILE}): name the directory of another iteration, or save in the format torch_dist"
        )
    return path / name


def _refuse_others(path: Path) -> None:
    """What people name instead of a checkpoint."""
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{path} has a torch.distributed.checkpoint's files and no {METADATA_FILE}: it was never complete, or was "
            "not copied whole"
        )
    if snapshots := sorted((path / "snapshots").glob("*")):
        raise CheckpointError(
            f"{path} is a model in Hugging Face's cache; name the one that is meant of "
            f"{', '.join(str(snapshot) for snapshot in snapshots[:4])}"
        )
    nested = [name for name in names if (path / name / "config.json").is_file() or is_dist_checkpoint(path / name)]
    if {SINGLE_FILE, INDEX_FILE} & set(names):
        return
    if nested:
        raise CheckpointError(f"{path} is no checkpoint; name the one that is meant in it, e.g. {path / nested[-1]}")
    if "config.json" not in names:
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json and {SINGLE_FILE} (Hugging Face), no {METADATA_FILE} "
            "(torch.distributed.checkpoint), and is no run; correct the path"
        )


def _describe(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there,"
    return "a file" if path.exists() else "nothing"
