"""`megarl ablate`. What it runs is imported when it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megarl.cli.submit_arguments import (
    Account,
    Container,
    ContainerRuntime,
    Environment,
    GpuMemory,
    GpusPerNode,
    Interface,
    Mount,
    Nodes,
    Partition,
    Sbatch,
    Template,
    Time,
)
from megarl.config.base import ConfigError
from megarl.config.loader import is_override

if TYPE_CHECKING:
    from megarl.cli.ablate import ResumeOptions

AblationPath = Annotated[Path | None, typer.Argument(metavar="ABLATION", help="TOML file, as in configs/ablations/.")]
AblationOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FRAGMENT.toml|a.b=value",
        help="at_once=2, seeds=[0], keep_engines=false and so on change the file's own fields. Anything else is laid "
        "over all runs, as `megarl train` takes it: train.steps=10, or a FRAGMENT.toml.",
    ),
]


def ablate(  # noqa: PLR0913, PLR0917  (options of the command line)
    ablation: AblationPath = None,
    overrides: AblationOverrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with an ablation that stopped: finished runs stay, others go on from their checkpoint or begin "
            "again. at_once=N and retries=N may be other than they were.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and print the runs alone; with --slurm the array's script."),
    ] = False,
    slurm: Annotated[
        bool,
        typer.Option(
            "--slurm",
            help="Submit the runs as one Slurm array, with the options of `megarl submit`; a shared warm start is a "
            "job before it. With --resume: submit what is not finished once more.",
        ),
    ] = False,
    at_once: Annotated[int | None, typer.Option(min=1, help="With --slurm: runs at the same time, at most.")] = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    time: Time = None,
    partition: Partition = None,
    account: Account = None,
    environment: Environment = None,
    container: Container = None,
    container_runtime: ContainerRuntime = None,
    mount: Mount = None,
    interface: Interface = None,
    sbatch: Sbatch = None,
    gpu_memory_gib: GpuMemory = 80.0,
    template: Template = None,
) -> None:
    """Compare settings: run each with several seeds, and tabulate what differs.

    Exit code 0 where all runs are finished, 1 where some are not, 2 where nothing was begun because something is wrong.
    """
    from megarl.cli.submit_options import SubmitOptions

    options = SubmitOptions(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        time=time,
        partition=partition,
        account=account,
        at_once=at_once,
        environment=environment,
        container=container,
        container_runtime=container_runtime,
        mount=tuple(mount or ()),
        interface=interface,
        sbatch=tuple(sbatch or ()),
        gpu_memory_gib=gpu_memory_gib,
        template=template,
    )
    if not slurm and options != SubmitOptions():
        raise ConfigError("megarl ablate: options of the job belong to --slurm, which is not given")
    if resume is not None:
        if dry_run:
            raise ConfigError("megarl ablate --resume DIR: nothing is tried; `megarl status DIR` says how it stands")
        if options != SubmitOptions():
            raise ConfigError("megarl ablate --resume DIR --slurm: the scripts are those of before and take no options")
        code = _resume(resume, [*([str(ablation)] if ablation else []), *(overrides or ())], slurm=slurm)
    elif ablation is None or is_override(str(ablation)):
        raise ConfigError("megarl ablate: expected an ABLATION file or --resume DIR; e.g. megarl ablate my-grid.toml")
    elif slurm:
        from megarl.cli.ablate_slurm import run_ablate_slurm

        code = run_ablate_slurm(Console(), ablation, overrides or (), options, dry_run=dry_run)
    else:
        from megarl.cli.ablate import run_ablate

        code = run_ablate(Console(), ablation, overrides or (), dry_run=dry_run)
    raise typer.Exit(code)


def _resume(path: Path, arguments: Sequence[str], *, slurm: bool) -> int:
    from megarl.cli.ablate import open_ablation, resume_ablate
    from megarl.cli.ablate_slurm import look_at_array, submit_again
    from megarl.cli.ablation_jobs import find_jobs

    options = _resume_options(arguments)
    directory = open_ablation(path)
    is_submitted = find_jobs(directory) is not None
    if is_submitted and arguments:
        raise ConfigError(
            f"megarl ablate --resume DIR {' '.join(arguments)}: it was submitted, and its scripts stay as they are"
        )
    if slurm:
        return submit_again(Console(), directory)
    if is_submitted:
        return look_at_array(Console(), directory)
    return resume_ablate(Console(), directory, options)


def _resume_options(arguments: Sequence[str]) -> "ResumeOptions":
    from megarl.cli.ablate import ResumeOptions

    found: dict[str, int] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        least = {"at_once": 1, "retries": 0}.get(key)
        if least is None:
            raise ConfigError(
                f"megarl ablate --resume DIR {argument}: expected at_once=N or retries=N; all else stays as it "
                "was, or the runs could not be compared"
            )
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f'{key}: expected an integer >= {least}, found "{text}"')
        found[key] = int(text)
    return ResumeOptions(**found)
