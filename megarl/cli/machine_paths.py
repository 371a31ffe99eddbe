"""The directories that a run writes to on this machine, tried before anything starts.

Each problem is one sentence: the path, what was found, what to do.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megarl.config.run import RunConfig

WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""Error numbers that say what is wrong with a place to write to, and not with this program."""

_MIN_FREE_MIB = 64
"""Below this not even the logs of a short run have room."""
_RUN_NAME_CHARACTERS = len("-train-20261127T231408Z-10")
_PATHS_BELOW = 512
"""Bytes of the longest path in a run directory, its own name included."""
_SOCKET_BYTES = 107
"""Longest path of a Unix socket (sun_path, less its closing zero)."""
_RAY_SOCKET = "/ray/session_2026-11-27_23-14-08_123456_1234567/sockets/plasma_store"
_VLLM_SOCKET = "/7c1bd1a6-9b1b-4b0c-8d2f-0e8c5b3f4f10"
_CACHES = (
    ("vLLM's caches", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME", ".cache", "vllm"),
    ("vLLM's settings", "VLLM_CONFIG_ROOT", "XDG_CONFIG_HOME", ".config", "vllm"),
    ("Hugging Face's caches", "HF_HOME", "XDG_CACHE_HOME", ".cache", "huggingface"),
)
"""What, its own variable, the variable of its parent, the parent below HOME, its name in the parent."""


def find_path_problems(config: RunConfig) -> Iterator[str]:
    """Problems of logging.directory, of the directory for temporary files, and of caches below HOME."""
    yield from _check_run_directory(config)
    yield from _check_temporary(config)
    yield from _check_caches()


def describe_write_error(error: OSError, path: Path) -> str:
    """What a failed write to `path` says to a person: the file, and the room there is where that was the reason."""
    where = error.filename or path
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{where} cannot be written ({error.strerror or error})"
    try:
        free_mib = shutil.disk_usage(nearest_directory(path)).free >> 20
    except OSError:
        return f"{where} cannot be written: the disk is full"
    return f"{where} cannot be written: the disk is full ({free_mib:,} MiB free); free space, or write elsewhere"


def nearest_directory(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))


def _check_run_directory(config: RunConfig) -> Iterator[str]:
    directory = Path(config.logging.directory).expanduser().absolute()
    where = f'logging.directory "{config.logging.directory}"'
    change = "set logging.directory to a directory you may write to"
    nearest = nearest_directory(directory)
    if problem := _try_writing(nearest):
        yield f"{where}: {problem}; {change}"
        return
    limit, longest = os.pathconf(nearest, "PC_NAME_MAX"), os.pathconf(nearest, "PC_PATH_MAX")
    if len(os.fsencode(directory)) + _PATHS_BELOW > longest:
        yield f"{where}: a path may have {longest} bytes, and those of a run below it have more; use a shorter one"
        return
    missing = [*directory.relative_to(nearest).parts, config.name + "x" * _RUN_NAME_CHARACTERS]
    too_long = [part for part in missing if len(part.encode()) > limit]
    if too_long:
        name = "name" if too_long[0] == missing[-1] else where
        yield f"{name}: file names may have {limit} bytes, and {too_long[0][:40]}... has more; use a shorter one"
    free_mib = shutil.disk_usage(nearest).free >> 20
    if free_mib < _MIN_FREE_MIB:
        yield f"{where}: the disk of {nearest} has {free_mib} MiB free; free space, or {change} with more"


def _check_temporary(config: RunConfig) -> Iterator[str]:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if (path := os.environ.get(name)) and (problem := _try_writing(Path(path))):
            yield f"{name}={path}: {problem}; set it to a directory you may write to, or unset it"
            return
    ray = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    places = [("vLLM", tempfile.gettempdir(), _VLLM_SOCKET, "TMPDIR")]
    if config.cluster.ray_address is None:
        places.insert(0, ("Ray", ray, _RAY_SOCKET, "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"))
    for who, base, below, name in places:
        room = _SOCKET_BYTES - len(below)
        if len(os.fsencode(base)) > room:
            yield (
                f"{name}={base} has {len(os.fsencode(base))} bytes, but {who} makes sockets below it, whose paths may "
                f"have {_SOCKET_BYTES}: at most {room} are left for it; set {name}=/tmp or another short path"
            )
            return


def _check_caches() -> Iterator[str]:
    """A home directory that is absent or read-only, where no variable leads the caches elsewhere."""
    unusable: dict[str, list[str]] = {}
    home = os.environ.get("HOME") or str(Path("~").expanduser())
    for what, own, parent_name, parent, name in _CACHES:
        if path := os.environ.get(own):
            origin = f"{own}={path}"
        elif above := os.environ.get(parent_name):
            path, origin = str(Path(above) / name), f"{parent_name}={above}"
        else:
            path, origin = str(Path(home) / parent / name), f"HOME={home}"
        if problem := _try_writing(nearest_directory(Path(path))):
            unusable.setdefault(f"{origin}: {problem}", []).append(what)
    for problem, names in unusable.items():
        variable = problem.partition("=")[0]
        yield f"{problem}, and {', '.join(names)} lie below it; set {variable} to a directory you may write to"


def _try_writing(directory: Path) -> str | None:
    """What keeps a file from being made in a directory; None where nothing does. Permission bits do not tell: root
    ignores them, and a file system may be read-only."""
    if not directory.is_dir():
        return f"{directory} is {'a file' if directory.exists() else 'not there'}, no directory"
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return f"{directory} cannot be written to ({error.strerror or error})"
    return None
