"""Which files `data.train.path` means; listings only, nothing is opened.

A directory never mixes splits, subsets or formats: where its names tell them apart, one is chosen or asked for.
"""

import glob
import re
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.config.hub_names import is_hub_name

FORMATS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_EXPECTED = f"{', '.join(FORMATS)} (each also {', '.join(COMPRESSIONS)})"
_SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev|eval)(?=[-_.]|$)")
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What the hub's own tools put beside data."""


def file_format(path: Path) -> str | None:
    """One of FORMATS' values by the name's ending, compression aside; None: not a data file."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return FORMATS.get(Path(name).suffix)


def file_compression(path: Path) -> str | None:
    """One of COMPRESSIONS' values by the name's ending."""
    return COMPRESSIONS.get(path.suffix.lower())


def find_data_files(data: FileData) -> list[Path]:
    """The files of a data set in the order in which they are read; empty: `data.path` is a hub name.

    ConfigError with every entry of the path that is missing, of no known format, or not clear.
    """
    entries = [data.path] if isinstance(data.path, str) else data.path
    files: list[Path] = []
    problems: list[str] = []
    for entry in entries:
        try:
            files += _find_entry(entry, data, alone=len(entries) == 1)
        except ConfigError as error:
            problems += error.problems
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(file.resolve(), file)
        if first is not file:
            problems.append(f"data.train.path: {first} is named twice; its rows would count double")
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return files


def _find_entry(entry: str, data: FileData, *, alone: bool) -> list[Path]:
    where = f'data.train.path "{entry}"'
    path = Path(entry).expanduser()
    if path.is_file():
        if file_format(path) is None:
            raise ConfigError(f"{where}: expected a name ending in {_EXPECTED}")
        return [path]
    if path.is_dir():
        return _find_in_directory(path, data, where)
    if glob.has_magic(entry):
        return _find_glob(path, where)
    if alone and file_format(path) is None and is_hub_name(entry):
        return []
    also = ", nor is it a hub name (owner/name)" if alone else ""
    raise ConfigError(f"{where}: no such file or directory (looked at {path.absolute()}){also}")


def _find_glob(pattern: Path, where: str) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise ConfigError(f"{where}: no file matches (looked from {Path.cwd()})")
    others = [str(file) for file in files if file_format(file) is None]
    if others:
        raise ConfigError(f"{where}: also matches {_some(others)}; expected names ending in {_EXPECTED}")
    _check_one_format(files, where)
    return files


def _find_in_directory(directory: Path, data: FileData, where: str) -> list[Path]:
    if data.subset is not None:
        directory = directory / data.subset
        if not directory.is_dir():
            raise ConfigError(f"{where}, data.train.subset: expected a directory {directory}, found nothing")
    while not (files := _data_files(directory)):
        directory = _choose_below(directory, data, where)
    files = _of_split(files, data, f"{where}: expected files of split", directory)
    _check_one_format(files, where)
    return files


def _data_files(directory: Path) -> list[Path]:
    found = (file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in found if file_format(file) is not None and file.name not in _NOT_DATA)


def _of_split(paths: list[Path], data: FileData, expected: str, directory: Path) -> list[Path]:
    """Those of the asked split, where any name says of which it is; else all. ConfigError when there is none of it."""
    named = [path for path in paths if _split_of(path.name)]
    chosen = [path for path in named if _split_of(path.name) == data.split] if named else paths
    if not chosen:
        raise ConfigError(
            f"{expected} {data.split!r} (data.train.split) in {directory}, found {_some([path.name for path in named])}"
        )
    return chosen


def _choose_below(directory: Path, data: FileData, where: str) -> Path:
    """The directory below that holds the data: the only one, or the split's (hub snapshots have data/, or one a
    subset, or one a split)."""
    below = sorted(path for path in directory.iterdir() if path.is_dir() and _holds_data(path))
    if not below:
        raise ConfigError(f"{where}: no files in {directory} whose names end in {_EXPECTED}")
    below = _of_split(below, data, f"{where}: expected split", directory)
    if len(below) > 1:
        raise ConfigError(
            f"{where}: data in several directories of {directory} ({_some([path.name for path in below])}); "
            "name one in data.train.subset, or the files in data.train.path"
        )
    return below[0]


def _holds_data(directory: Path) -> bool:
    if directory.name.startswith("."):
        return False
    return bool(_data_files(directory)) or any(_holds_data(path) for path in directory.iterdir() if path.is_dir())


def _split_of(name: str) -> str | None:
    found = _SPLIT_NAME.search(name)
    return found.group(1) if found else None


def _check_one_format(files: list[Path], where: str) -> None:
    formats = {file_format(file): file.name for file in reversed(files)}
    if len(formats) > 1:
        raise ConfigError(
            f"{where}: files of several formats ({', '.join(sorted(formats.values()))}), perhaps the same rows twice; "
            "name the files in data.train.path"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
