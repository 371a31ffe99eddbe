"""A job for Slurm as plain data: what its script needs to know, and nothing that has to be asked for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megarl.config.base import ConfigError
from megarl.slurm.times import parse_time_limit

_REQUEUE_S = 30
"""Before its time is over, a job whose run is not done with saving is put back into the queue as it is."""
_RAY_WAIT_S = _STEP_WAIT_S = 300
_NAME = re.compile(r"[\w.-]+")
_OURS = (
    "job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "exclusive", "mem", "requeue", "no-requeue",
    "open-mode", "output", "error", "signal", "time", "partition", "account", "array", "chdir",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image that has megarl in it."""

    image: str
    runtime: Literal["apptainer", "pyxis"]
    """pyxis: Slurm's plug-in over enroot, which srun takes as --container-image."""
    mounts: tuple[str, ...]
    """Directories of the nodes that are seen inside under the same path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Virtualenv:
    """A Python environment on a file system that all nodes see."""

    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a sweep, or of an ablation."""

    index: int
    overrides: tuple[str, ...]
    """What sets it apart, as `megarl train` takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNeeds:
    """What the check of a node asks of it, beside GPUs."""

    shm_gib: float
    scratch_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submission. `directory` is where everything of it lies, seen by all nodes."""

    name: str
    command: str
    """As it was typed, for the script's first lines."""
    directory: Path
    working_directory: Path
    environment: Virtualenv | Container
    train: tuple[str, ...]
    """Arguments of `megarl train`, or of another `verb`, those of a cell apart."""
    nodes: int
    gpus_per_node: int
    """0: nodes without GPUs."""
    workers_per_node: int
    """What Ray is told as the CPUs of a node: policy ranks and engines take one each."""
    paths: tuple[Path, ...]
    """What every node must see."""
    needs: NodeNeeds
    stop_within_s: int
    """The run is done with its step and its save so long after it was asked."""
    end_margin_s: int
    """Beyond that, for ending the workers."""
    restarts: int
    """Crashed attempts after which another begins."""
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    interface: str | None = None
    """Network interface by which the nodes reach each other; None: that of the name under which Slurm knows them."""
    sbatch: tuple[str, ...] = ()
    """Further options, verbatim."""
    cells: tuple[Cell, ...] = ()
    """Of a sweep; () for one run."""
    at_once: int | None = None
    """Cells that run at the same time, at most."""
    verb: Literal["train", "sft"] = "train"
    """Of the command that the job runs."""

    def __post_init__(self) -> None:
        if problems := list(self.find_problems()):
            raise ConfigError("\n".join(problems), problems)

    @property
    def signal_s(self) -> int:
        """Seconds before the time limit at which the run is asked to save and stop."""
        return self.stop_within_s + self.end_margin_s

    @property
    def patience_s(self) -> int:
        """Seconds after that signal at which the job is put back into the queue, saved or not."""
        return max(self.signal_s - _REQUEUE_S, self.signal_s // 2)

    @property
    def grace_s(self) -> int:
        """Seconds for which the other parts go on when one has ended: no less than a save may take."""
        return self.signal_s

    @property
    def ray_wait_s(self) -> int:
        """Seconds for which the nodes wait for each other."""
        return _RAY_WAIT_S

    @property
    def step_wait_s(self) -> int:
        """Seconds for which Slurm may have no place for a step on nodes that the job has."""
        return _STEP_WAIT_S

    def find_problems(self) -> Iterator[str]:
        """What is wrong with the options, whatever Slurm and the configuration say."""
        if not _NAME.fullmatch(self.name):
            yield f'name "{self.name}": expected letters, digits, ".", "_" and "-"'
        for option, value in (("--partition", self.partition), ("--account", self.account), ("--time", self.time)):
            if value is not None and not re.fullmatch(r"[\w.,:+-]+", value):
                yield f'{option} "{value}": expected one word'
        yield from self._check_time()
        for text in self.sbatch:
            name = text.lstrip("-").partition("=")[0]
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\n]+)?", text):
                yield f'--sbatch "{text}": expected an option of sbatch in its long form, such as --qos=high'
            elif name in _OURS:
                yield f"--sbatch {text}: the script sets --{name} itself; megarl submit --help lists what may be chosen"
        for path in (self.directory, self.working_directory):
            if any(character in str(path) for character in '"\\\n%'):
                yield f'{path}: Slurm cannot be told a path with ", \\, % or a line break; use another one'
        if self.at_once is not None and not self.cells:
            yield "--at-once: there is no sweep; give --array a.b=[...]"

    def _check_time(self) -> Iterator[str]:
        if self.time is None:
            return
        try:
            limit_s = parse_time_limit(self.time)
        except ValueError as error:
            yield f"--time: {error}"
            return
        if limit_s <= self.signal_s:
            yield (
                f"--time {self.time} is {limit_s} s, but the run is asked to save {self.signal_s} s before its end "
                f"(checkpoint.stop_within_s {self.stop_within_s} + end_margin_s {self.end_margin_s}); ask for more "
                "time, or lower them"
            )
