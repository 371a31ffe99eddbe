"""The options of `megarl submit`, and the job that they make of a configuration."""

import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.config.data_files import find_data_files
from megarl.config.loader import is_fragment, load_config
from megarl.config.run import RunConfig
from megarl.slurm.job import Cell, Container, Job, NodeNeeds, Virtualenv
from megarl.slurm.sweep import plan_cells

_GPU_NODE = NodeNeeds(shm_gib=16.0, scratch_gib=20.0)
_CPU_NODE = NodeNeeds(shm_gib=1.0, scratch_gib=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """As they were typed; None leaves the configuration's value, or Slurm's."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    array: tuple[str, ...] = ()
    at_once: int | None = None
    environment: Path | None = None
    container: str | None = None
    container_runtime: Literal["apptainer", "pyxis"] | None = None
    mount: tuple[str, ...] = ()
    interface: str | None = None
    restarts: int = 5
    sbatch: tuple[str, ...] = ()
    gpu_memory_gib: float = 80.0
    template: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A configuration, or the cells of a sweep over it."""

    config: Path
    arguments: tuple[str, ...]
    """Fragments and overrides as they were typed."""
    options: SubmitOptions
    name: str
    """Of the configuration; a cell's run has another."""
    runs: tuple[RunConfig, ...]
    """The one, or those of the cells in their order."""
    cells: tuple[Cell, ...]

    @property
    def first(self) -> RunConfig:
        return self.runs[0]

    @property
    def sources(self) -> dict[str, Path]:
        """Name in the job's directory -> the file that was typed."""
        files = [self.config, *(Path(argument) for argument in self.arguments if is_fragment(argument))]
        return {self._kept_name(number, file): file for number, file in enumerate(files)}

    @property
    def on_cluster(self) -> tuple[str, ...]:
        """Overrides that options stand for."""
        return cluster_overrides(self.options)

    def train_arguments(self, directory: Path) -> tuple[str, ...]:
        """Of `megarl train`: the files as they are kept, and the overrides, in the order in which they were typed."""
        kept = iter(directory / name for name in self.sources)
        rest = (str(next(kept)) if is_fragment(text) else text for text in self.arguments)
        return (str(next(kept)), *rest, *self.on_cluster)

    def _kept_name(self, number: int, file: Path) -> str:
        return f"{number}-{file.name}" if number else file.name


def load_asked(path: Path, arguments: Sequence[str], options: SubmitOptions) -> Asked:
    """Load the configuration, of a sweep every cell's. ConfigError with every problem, and the cell that has it."""
    typed = [*arguments, *cluster_overrides(options)]
    base = load_config(path, typed)
    cells = plan_cells(options.array, name=base.name)
    runs, problems = [], []
    for cell in cells:
        try:
            runs.append(load_config(path, [*typed, *cell.overrides]))
        except ConfigError as error:
            problems += [f"cell {cell.index} ({' '.join(cell.overrides)}): {text}" for text in error.problems]
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return Asked(
        config=path,
        arguments=tuple(arguments),
        options=options,
        name=base.name,
        runs=tuple(runs) or (base,),
        cells=cells,
    )


def cluster_overrides(options: SubmitOptions) -> tuple[str, ...]:
    """Overrides that options stand for."""
    chosen = []
    if options.nodes is not None:
        chosen.append(f"cluster.nodes={options.nodes}")
    if options.gpus_per_node:  # 0: nodes without GPUs; the configuration says how many workers they hold
        chosen.append(f"cluster.gpus_per_node={options.gpus_per_node}")
    return tuple(chosen)


def build_job(asked: Asked, *, directory: Path, command: Sequence[str]) -> Job:
    """directory: of the job, absolute. command: what was typed."""
    return build_job_of(
        asked.runs,
        asked.options,
        name=asked.name,
        train=asked.train_arguments(directory),
        cells=asked.cells,
        directory=directory,
        command=command,
    )


def build_job_of(
    runs: Sequence[RunConfig],
    options: SubmitOptions,
    *,
    name: str,
    train: Sequence[str],
    cells: Sequence[Cell],
    directory: Path,
    command: Sequence[str],
) -> Job:
    """A job of these runs, which share its nodes: one, or those of the cells. train: arguments that all have."""
    config = runs[0]
    on_gpu = options.gpus_per_node != 0
    checkpoints = [run.checkpoint for run in runs]
    return Job(
        name=name,
        command=shlex.join(command),
        directory=directory,
        working_directory=Path.cwd(),
        environment=_environment(options, runs, directory),
        train=tuple(train),
        nodes=config.cluster.nodes,
        gpus_per_node=config.cluster.gpus_per_node if on_gpu else 0,
        # On a GPU that they share, a policy rank and an engine are two.
        workers_per_node=config.cluster.gpus_per_node
        * (2 if on_gpu and any(run.cluster.colocate for run in runs) else 1),
        paths=tuple(read_paths(runs)),
        needs=_GPU_NODE if on_gpu else _CPU_NODE,
        stop_within_s=math.ceil(max(checkpoint.stop_within_s for checkpoint in checkpoints)),
        end_margin_s=math.ceil(max(checkpoint.end_margin_s for checkpoint in checkpoints)),
        restarts=options.restarts,
        time=options.time,
        partition=options.partition,
        account=options.account,
        interface=options.interface,
        sbatch=options.sbatch,
        cells=tuple(cells),
        at_once=options.at_once,
    )


def read_paths(runs: Iterable[RunConfig]) -> list[Path]:
    """What the runs read and where they write, absolute and each once."""
    found: list[Path] = []
    for config in runs:
        found.append(Path(config.model.path))
        found.append(Path(config.logging.directory))
        if config.train.init_from is not None:
            found.append(Path(config.train.init_from))
        if isinstance(config.data.train, FileData):
            found += [Path(file) for file in find_data_files(config.data.train)]
    return list(dict.fromkeys(path.expanduser().absolute() for path in found))


def _environment(options: SubmitOptions, runs: Sequence[RunConfig], directory: Path) -> Virtualenv | Container:
    if options.container is None:
        if options.container_runtime or options.mount:
            raise ConfigError("--container-runtime and --mount belong to --container IMAGE, which is not given")
        return Virtualenv(directory=(options.environment or Path(sys.prefix)).expanduser().absolute())
    if options.environment is not None:
        raise ConfigError("--environment and --container: a run is in one of them; leave out the other")
    runtime = options.container_runtime or ("apptainer" if options.container.endswith(".sif") else "pyxis")
    seen = [Path.cwd(), directory.parent, *read_paths(runs)]
    # A directory that lies below another is seen with it.
    above = [path for path in seen if not any(path != other and path.is_relative_to(other) for other in seen)]
    mounts = dict.fromkeys([*options.mount, *(f"{path}:{path}" for path in above)])
    return Container(image=options.container, runtime=runtime, mounts=tuple(mounts))


def describe_facts(asked: Asked, *, number: str, command: Sequence[str], submitted: str) -> dict[str, object]:
    """What job.json has."""
    return {
        "job": number,
        "submitted": submitted,
        "command": shlex.join(command),
        "cells": [list(cell.overrides) for cell in asked.cells],
    }
