"""`megarl submit` and `megarl status`. What they run is imported when they do."""

from pathlib import Path
from typing import Annotated

import typer

from megarl.cli.arguments import ConfigPath, Overrides
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


def submit(  # noqa: PLR0913, PLR0917  (options of the command line)
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    time: Time = None,
    partition: Partition = None,
    account: Account = None,
    array: Annotated[
        list[str] | None,
        typer.Option(
            metavar="a.b=[...]",
            help="A sweep: one run for each value of a TOML array; given several times, for each combination.",
        ),
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Runs of a sweep at the same time, at most.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script alone, and what Slurm says of it on standard error.")
    ] = False,
    environment: Environment = None,
    container: Container = None,
    container_runtime: ContainerRuntime = None,
    mount: Mount = None,
    interface: Interface = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="Crashed attempts after which another is made; the pauses grow.")
    ] = 5,
    sbatch: Sbatch = None,
    gpu_memory_gib: GpuMemory = 80.0,
    template: Template = None,
) -> None:
    """Submit a run, or a sweep, to Slurm: it checks its nodes, saves before the time limit, and starts itself again."""
    from megarl.cli.submit import run_submit
    from megarl.cli.submit_options import SubmitOptions

    options = SubmitOptions(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        time=time,
        partition=partition,
        account=account,
        array=tuple(array or ()),
        at_once=at_once,
        environment=environment,
        container=container,
        container_runtime=container_runtime,
        mount=tuple(mount or ()),
        interface=interface,
        restarts=restarts,
        sbatch=tuple(sbatch or ()),
        gpu_memory_gib=gpu_memory_gib,
        template=template,
    )
    raise typer.Exit(run_submit(config, overrides or (), options, dry_run=dry_run))


def status(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Directory of a run, a job, a cell of a sweep, or an ablation."),
    ],
) -> None:
    """Say how submitted runs stand: queue, attempt, step, age of the last heartbeat and checkpoint.

    Exit code 1 where one has failed or was killed and nothing is queued that goes on with it.
    """
    from megarl.cli.status import run_status

    raise typer.Exit(run_status(runs))
