"""`megarl submit` and `megarl status`. What they run is imported when they do."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from megarl.cli.arguments import ConfigPath, Overrides


def submit(  # noqa: PLR0913, PLR0917  (options of the command line)
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="As cluster.nodes.")] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="As cluster.gpus_per_node; 0: nodes without GPUs, each with room for as many workers as that says.",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Time limit of an attempt (2:00:00, 1-12:00:00); before it the run saves and is requeued."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
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
    environment: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Python environment of the nodes; default: this one.")
    ] = None,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Run in an image (cluster/Dockerfile).")
    ] = None,
    container_runtime: Annotated[
        Literal["apptainer", "pyxis"] | None, typer.Option(help="Default: apptainer for a .sif file, else pyxis.")
    ] = None,
    mount: Annotated[
        list[str] | None, typer.Option(metavar="SRC:DST", help="Into the container, beside what the run reads.")
    ] = None,
    interface: Annotated[
        str | None, typer.Option(help="Network interface of the nodes; default: that of their name in Slurm.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="Crashed attempts after which another is made; the pauses grow.")
    ] = 5,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="--OPTION=VALUE", help="A further option of sbatch, verbatim.")
    ] = None,
    gpu_memory_gib: Annotated[float, typer.Option(min=1, help="Memory of a GPU, for `megarl plan`.")] = 80.0,
    template: Annotated[Path | None, typer.Option(help="In place of cluster/job.sbatch.j2.")] = None,
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
        list[Path], typer.Argument(metavar="RUN", help="Directory of a job, of a cell of a sweep, or of a run.")
    ],
) -> None:
    """Say how submitted runs stand: queue, attempt, step, age of the last heartbeat and checkpoint.

    Exit code 1 where one has failed or was killed and nothing is queued that goes on with it.
    """
    from megarl.cli.status import run_status

    raise typer.Exit(run_status(runs))
