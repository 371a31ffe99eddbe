"""Verbs that look and start nothing: show, plan, doctor, theory, report, top.

What they run is imported when they do.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from megarl.cli.arguments import OptionalConfigPath, Overrides
from megarl.config.base import ConfigError


class FigureFormat(StrEnum):
    """As `report.exports` has them."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


class FigureWidth(StrEnum):
    """Likewise."""

    single = "single"
    double = "double"


def show(
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="List every field with its type, default and meaning instead.")
    ] = False,
) -> None:
    """Print the configuration as a run would see it, defaults included, with the numbers that follow from it."""
    from megarl.cli.show import print_config, print_fields

    if fields:
        print_fields(Console())
    elif config is None:
        raise ConfigError("megarl show: expected a CONFIG file or --fields; e.g. megarl show configs/quickstart.toml")
    else:
        print_config(Console(), config, overrides or ())


def plan(  # noqa: PLR0913, PLR0917  (options of the command line)
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="TOML file; or a model's directory or config.json, planned with the defaults of everything else. Of "
            "the model only config.json is read; configs/shapes/ stands in for one that is not on this machine.",
        ),
    ],
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of the policy (parallel.world_size).")] = None,
    tensor: Annotated[int | None, typer.Option(min=1, help="Its tensor ranks (parallel.tensor).")] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, help="Its pipeline stages (parallel.pipeline).")] = None,
    engines: Annotated[int | None, typer.Option(min=1, help="vLLM engines (rollout.engines).")] = None,
    rollout_tensor: Annotated[int | None, typer.Option(min=1, help="Tensor ranks of each (rollout.tensor).")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="As cluster.gpus_per_node.")] = None,
    gpu_memory_gib: Annotated[float, typer.Option(min=1, help="Memory of a GPU.")] = 80.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, in bytes and seconds.")] = False,
) -> None:
    """Print layout, memory, micro-batches and publication time of a configuration; exit code 1 when it does not fit.

    Nothing is started.
    """
    from megarl.cli.plan import make_plan
    from megarl.cli.plan_config import PlanOptions, load_planned
    from megarl.cli.plan_tables import print_plan

    options = PlanOptions(
        gpus=gpus,
        tensor=tensor,
        pipeline=pipeline,
        rollout_tensor=rollout_tensor,
        engines=engines,
        gpus_per_node=gpus_per_node,
    )
    made = make_plan(load_planned(config, overrides or (), options), gpu_memory_gib=gpu_memory_gib)
    if as_json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        print_plan(Console(), made)
    raise typer.Exit(0 if made.plan.fits else 1)


def doctor(
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start a real Ray cluster for a moment.")] = False,
) -> None:
    """Check this machine, its packages and a configuration; exit code 1 when something must be changed."""
    from megarl.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(Console(), config, overrides or (), deep=deep))


def theory(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG|RUN|ABLATION",
            help="TOML file of a study; or the directory of a run or an ablation, or the practice.parquet of one: what "
            "runs did against what is proven.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FRAGMENT.toml|a.b=value|RUN",
            help="Changes of the study, as `megarl train` takes them; or more runs and ablations.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="An empty or new directory for report.html and figures; default runs/theory-<time>.",
        ),
    ] = None,
) -> None:
    """Compute what is proven about clipping and entropy, against the proofs' predictions; no model needed.

    Of runs: where the sign of clipping's term is negative, and what the entropy does there; how far the first-order
    prediction holds; and settings compared at equal entropy. Safe while they run.
    """
    from megarl.cli.practice import names_runs, run_practice

    if config is not None and names_runs(config):
        raise typer.Exit(run_practice(Console(), [config, *map(Path, changes or ())], output))
    from megarl.config.loader import load_theory

    theory_config = load_theory(config, changes or ())
    from megarl.cli.theory import run_theory

    raise typer.Exit(run_theory(Console(), theory_config, output))


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|ABLATION|TABLE.parquet",
            help="Run directory, `latest` beside them being the newest; several are compared. Or the directory of an "
            "ablation: its cells are. Or a stored table of docs/results/tables: its runs are.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where the page goes, or the figure; default report.html in the run or the ablation. Needed for "
            "several runs.",
        ),
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="List the names of the figures; draw nothing.")] = False,
    figure: Annotated[
        str | None, typer.Option("--figure", metavar="NAME", help="Write this figure alone, sized for a paper.")
    ] = None,
    file_format: Annotated[
        FigureFormat | None,
        typer.Option("--format", help="Of --figure; default: what FILE ends in, or pdf."),
    ] = None,
    width: Annotated[
        FigureWidth, typer.Option("--width", help="Of --figure: one column (3.25 in) or both (6.75 in); text of 8 pt.")
    ] = FigureWidth.single,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve the page on this machine alone, and build it again as runs go on."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of --watch; default: 8642, or any free one where that is taken."),
    ] = None,
) -> None:
    """Draw the page of a run anew, and say how it stands: running, finished, failed, killed; or compare several runs.

    A comparison tells first what differs in the configurations. Runs that differ in train.seed alone are drawn as
    their mean, with its 95 % interval over seeds.
    """
    from megarl.cli.report import export_figure, print_figure_names, run_report

    if port is not None and not watch:
        raise ConfigError("megarl report: --port is of --watch; expected --watch with it")
    if watch:
        if output or figures or figure or file_format:
            raise ConfigError("megarl report: --watch serves the page and writes none; expected no option but --port")
        from megarl.cli.report_watch import run_watch

        raise typer.Exit(run_watch(runs, port=port))
    if figures:
        print_figure_names(runs)
    elif figure is not None:
        chosen: Literal["png", "svg", "pdf"] | None = None if file_format is None else file_format.value
        written = export_figure(runs, figure, file_format=chosen, width=width.value, output=output)
        print(f"figure   {written}")
    elif file_format is not None:
        raise ConfigError("megarl report: --format is of --figure; expected --figure NAME with it")
    else:
        raise typer.Exit(run_report(runs, output=output))


def top(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Directory of a run, an ablation, a job, or a cell of a sweep.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print it once and end; so too where standard output is no terminal.")
    ] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.5, help="Between two looks at the files.")] = 2.0,
) -> None:
    """Show runs as they go on: progress, curves, phases, what every process does and what is stuck; a table of several.

    It reads the run directory alone, so it works in any shell that sees it. q or Ctrl-C ends it, not the run.
    """
    from megarl.cli.top import run_top

    raise typer.Exit(run_top(runs, once=once, every_s=every))
