"""Options of the verbs that submit to Slurm."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Nodes = Annotated[int | None, typer.Option(min=1, help="As cluster.nodes.")]
GpusPerNode = Annotated[
    int | None,
    typer.Option(
        min=0, help="As cluster.gpus_per_node; 0: nodes without GPUs, each with room for as many workers as that says."
    ),
]
Time = Annotated[
    str | None,
    typer.Option(help="Time limit of an attempt (2:00:00, 1-12:00:00); before it the run saves and is requeued."),
]
Partition = Annotated[str | None, typer.Option(help="Slurm's.")]
Account = Annotated[str | None, typer.Option(help="Slurm's.")]
Environment = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Python environment of the nodes; default: this one.")
]
Container = Annotated[str | None, typer.Option(metavar="IMAGE", help="Run in an image (cluster/Dockerfile).")]
ContainerRuntime = Annotated[
    Literal["apptainer", "pyxis"] | None, typer.Option(help="Default: apptainer for a .sif file, else pyxis.")
]
Mount = Annotated[
    list[str] | None, typer.Option(metavar="SRC:DST", help="Into the container, beside what the run reads.")
]
Interface = Annotated[
    str | None, typer.Option(help="Network interface of the nodes; default: that of their name in Slurm.")
]
Sbatch = Annotated[
    list[str] | None, typer.Option(metavar="--OPTION=VALUE", help="A further option of sbatch, verbatim.")
]
GpuMemory = Annotated[float, typer.Option(min=1, help="Memory of a GPU, for `megarl plan`.")]
Template = Annotated[Path | None, typer.Option(help="In place of cluster/job.sbatch.j2.")]
