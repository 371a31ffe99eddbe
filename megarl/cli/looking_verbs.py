"""Verbs that look and start nothing: show, plan, doctor, theory, report, top.

What they run is imported when they do.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megarl.cli.arguments import OptionalConfigPath, Overrides
from megarl.config.base import ConfigError


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
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="An empty or new directory for report.html and figures; default runs/theory-<time>.",
        ),
    ] = None,
) -> None:
    """Compute what is proven about clipping and entropy, against the proofs' predictions; no model needed."""
    from megarl.config.loader import load_theory

    theory_config = load_theory(config, overrides or ())
    from megarl.cli.theory import run_theory

    raise typer.Exit(run_theory(Console(), theory_config, output))


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directory; `latest` beside them is the newest.")
    ],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve the page on this machine alone, and build it again as runs go on."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of --watch; default: 8642, or any free one where that is taken."),
    ] = None,
) -> None:
    """Draw the figures and report.html of any run anew, and say how it stands: running, finished, failed, killed."""
    if watch:
        from megarl.cli.report_watch import run_watch

        raise typer.Exit(run_watch(runs, port=port))
    if port is not None:
        raise ConfigError("megarl report: --port is of --watch; expected --watch with it")
    from megarl.cli.report import run_report

    raise typer.Exit(run_report(runs))


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
