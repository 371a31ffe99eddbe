"""What `megarl submit` refuses before Slurm is asked: files, layout, memory, and paths that no other node can see."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from megarl.cli.plan import make_plan
from megarl.cli.plan_config import Planned
from megarl.cli.preflight import check_files
from megarl.cli.submit_options import Asked, read_paths
from megarl.cli.train_checks import find_train_problems
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.planning.nodes import place_run
from megarl.slurm.job import Job, Virtualenv

_OF_ONE_MACHINE = {"tmpfs", "ramfs", "devtmpfs"}
_MOUNTS = Path("/proc/mounts")


def check_asked(asked: Asked) -> None:
    """ConfigError with everything that is wrong with the runs; of a sweep with the cell."""
    problems: list[str] = []
    for index, config in enumerate(asked.runs):
        found = list(
            find_run_problems(config, on_gpu=asked.options.gpus_per_node != 0, gpu_gib=asked.options.gpu_memory_gib)
        )
        problems += [f"cell {index}: {text}" for text in found] if asked.cells else found
    # What is wrong with every cell alike is said once.
    texts = [text.partition(": ")[2] if asked.cells else text for text in problems]
    once = [problem for at, problem in enumerate(problems) if texts[at] not in texts[:at]]
    problems = once + list(find_hidden_paths(read_paths(asked.runs)) if not once else ())
    if problems:
        raise ConfigError("\n".join(problems), problems)


def check_job(job: Job) -> None:
    """ConfigError where the environment is not there, or cannot be seen by other nodes."""
    if not isinstance(job.environment, Virtualenv):
        return
    directory = job.environment.directory
    problems = list(find_hidden_paths([directory]))
    if not (directory / "bin" / "megarl").is_file():
        problems.append(f"--environment {directory}: no bin/megarl in it; expected an environment that megarl is in")
    if problems:
        raise ConfigError("\n".join(problems), problems)


def find_run_problems(config: RunConfig, *, on_gpu: bool, gpu_gib: float) -> Iterator[str]:
    """What is wrong with one run of a job: its files, and its layout on the nodes that are asked for."""
    if config.cluster.ray_address is not None:
        yield "cluster.ray_address: a job starts Ray on its own nodes; remove it"
    try:
        check_files(config, find_train_problems(config))
    except ConfigError as error:
        yield from error.problems
        return
    yield from _check_layout(config, on_gpu=on_gpu, gpu_gib=gpu_gib)


def _check_layout(config: RunConfig, *, on_gpu: bool, gpu_gib: float) -> Iterator[str]:
    """By the arithmetic of `megarl plan`, on the nodes that are asked for."""
    placed = place_run(config)
    if problems := list(placed.find_problems()):
        yield from problems
        return
    if placed.num_nodes < config.cluster.nodes:
        yield (
            f"--nodes: policy and engines take {placed.num_nodes} of the {config.cluster.nodes} nodes of "
            f"{config.cluster.gpus_per_node} GPUs; ask for no more, or give them work (parallel.world_size, "
            "rollout.engines)"
        )
    if on_gpu:
        planned = Planned(
            model=config.model.path,
            shape_file=None,
            nodes_typed=True,
            shape=read_model_shape(config.model.path),
            placed=placed,
        )
        report = make_plan(planned, gpu_memory_gib=gpu_gib)
        yield from (f"{text} (--gpu-memory-gib says what a GPU has)" for text in report.warnings)


def find_hidden_paths(paths: Iterable[Path], mounts: str | None = None) -> Iterator[str]:
    """Paths on file systems in this machine's memory. mounts: as /proc/mounts has them.

    Whether a node sees the others is found out there, by the check that begins every attempt.
    """
    lines = (_MOUNTS.read_text(encoding="utf-8") if mounts is None else mounts).splitlines()
    kinds = {Path(line.split()[1].replace("\\040", " ")): line.split()[2] for line in lines}
    for path in paths:
        above = next((folder for folder in (path, *path.parents) if folder in kinds), Path("/"))
        if (kind := kinds.get(above)) in _OF_ONE_MACHINE:
            yield (
                f"{path} lies in this machine's memory ({kind} on {above}), where no node of the job sees it; "
                "put it on a shared file system"
            )
