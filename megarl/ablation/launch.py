"""How the runs of an ablation are started, written down before the first: launch.json.

What is started tomorrow is what was checked today: the files are copies in the ablation's directory, and paths in them
are read from where the person stood.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from megarl.ablation.cells import Ablation, replace_files
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.settings import as_override
from megarl.config.engine_shape import name_shape
from megarl.telemetry.atomic_file import write_text_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One run."""

    arguments: tuple[str, ...]
    """What follows `megarl`: the verb, the configuration, fragments and overrides."""
    steps: int
    shape: str | None = None
    """Runs with the same one may have the same Ray and engines, one after the other; None: nobody else may have its."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the most demanding run takes of a machine while it runs."""

    nodes: int
    gpus: int
    """On CUDA: of one node, all that `cluster.gpus_per_node` says."""
    cores: int
    """Without CUDA: of the policy and the engines the larger part, since they take turns."""
    memory_gib: float
    """Likewise, of both together."""
    joins_ray: bool
    """It joins a Ray cluster that is there, and starts none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All of it."""

    directory: str
    """Of the ablation: the runs' arguments have its path in them."""
    working_directory: str
    at_once: int
    retries: int
    needs: Needs
    warm: Start | None
    cells: Mapping[str, Start]
    """By the cell's name."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"cells": {name: asdict(start) for name, start in self.cells.items()}}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        warm = facts["warm"]
        return cls(
            directory=facts["directory"],
            working_directory=facts["working_directory"],
            at_once=facts["at_once"],
            retries=facts["retries"],
            needs=Needs(**facts["needs"]),
            warm=None if warm is None else _start(warm),
            cells={name: _start(start) for name, start in facts["cells"].items()},
        )


def write_launch(directory: AblationDirectory, ablation: Ablation, needs: Needs) -> Launch:
    """Copy the files of the runs and write launch.json."""
    launch = build_launch(ablation, directory, needs, _copy_sources(ablation, directory.sources))
    write_text_atomically(directory.launch_path, json.dumps(launch.as_json(), indent=2) + "\n")
    return launch


def read_launch(directory: AblationDirectory) -> Launch:
    """ValueError where it is none, or where the directory was moved since, which the runs' paths do not know."""
    try:
        launch = Launch.from_json(json.loads(directory.launch_path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory.launch_path} cannot be used: {type(error).__name__}: {error}") from error
    if Path(launch.directory) != directory.path:
        raise ValueError(
            f"it was made as {launch.directory}, and its runs would be written there; move it back to go on with it "
            "(status, tables and reports need no such thing)"
        )
    return launch


def build_launch(ablation: Ablation, directory: AblationDirectory, needs: Needs, kept: Mapping[Path, Path]) -> Launch:
    """kept: the copy of each file."""
    base, runs = str(kept[ablation.base]), as_override("logging.directory", str(directory.runs))
    warm_weights: tuple[str, ...] = ()
    warm = None
    if ablation.warm is not None and ablation.warm.sft is not None:
        steps = ablation.warm.sft.steps
        own = (*replace_files(ablation.shared, kept), as_override("name", ablation.warm.name), runs)
        warm = Start(arguments=("sft", base, *own), steps=steps)
        warm_weights = (as_override("model.path", str(warm_start_weights(directory, steps))),)
    shapes = find_shapes(ablation, needs)
    cells = {
        run.cell.name: Start(
            arguments=("train", base, *replace_files(run.arguments, kept), *warm_weights, runs),
            steps=run.config.train.steps,
            shape=shapes.get(run.cell.name),
        )
        for run in ablation.runs
    }
    return Launch(
        directory=str(directory.path),
        working_directory=str(Path.cwd()),
        at_once=ablation.config.at_once,
        retries=ablation.config.retries,
        needs=needs,
        warm=warm,
        cells=cells,
    )


def find_shapes(ablation: Ablation, needs: Needs) -> dict[str, str]:
    """By cell, what engines it has, where these are to be kept and another cell has the same. A Ray that is joined
    keeps no engines: it is somebody else's."""
    if not ablation.config.keep_engines or needs.joins_ray:
        return {}
    shapes = {run.cell.name: name_shape(run.config) for run in ablation.runs}
    counts = Counter(shapes.values())
    return {name: shape for name, shape in shapes.items() if counts[shape] > 1}


def warm_start_weights(directory: AblationDirectory, steps: int) -> Path:
    """Where the shared warm start of so many steps exports its weights."""
    return directory.warm / "hf" / f"step-{steps:06d}"


def name_copies(files: list[Path], folder: Path) -> dict[Path, Path]:
    """File -> its copy in the folder; numbered, since two may have one name."""
    return {file: folder / f"{number}-{file.name}" for number, file in enumerate(files)}


def _copy_sources(ablation: Ablation, folder: Path) -> dict[Path, Path]:
    kept = name_copies([ablation.base, *ablation.fragments], folder)
    folder.mkdir()
    for file, copy in kept.items():
        shutil.copyfile(file, copy)
    return kept


def _start(facts: Mapping[str, Any]) -> Start:
    return Start(arguments=tuple(facts["arguments"]), steps=facts["steps"], shape=facts.get("shape"))
