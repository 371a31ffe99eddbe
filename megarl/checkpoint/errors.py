"""The one error of checkpoints, and how it lists what is wrong."""

import errno
from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the text names the file and says what to do."""


def list_faults(faults: Iterable[str], *, shown: int = 12) -> str:
    """Faults for a message, one a line; the first ones where there are many."""
    lines = list(faults)
    more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n  ".join([*lines[:shown], *more])


def list_by_kind(faults: Iterable[tuple[str, str]], *, shown: int = 8) -> str:
    """(kind, what) as lines "kind: what", of each kind the first ones: a model under another prefix lacks all of its
    tensors and has as many that are unexpected."""
    by_kind: dict[str, list[str]] = {}
    for kind, what in faults:
        by_kind.setdefault(kind, []).append(what)
    return "\n  ".join(
        f"{kind}: {line}"
        for kind, found in by_kind.items()
        for line in [*found[:shown], *([f"and {len(found) - shown} more"] if len(found) > shown else [])]
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or the system had none to give; torch and safetensors say it in words only."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "Cannot allocate memory"))
