"""`megarl eval`. What it runs is imported when it does."""

from pathlib import Path
from typing import Annotated

import typer

from megarl.cli.arguments import OptionalConfigPath, Overrides


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN|CHECKPOINT",
            help="Directory of a Hugging Face checkpoint, of a run, whose newest exported weights are taken, or of a "
            "torch.distributed.checkpoint (RUN/checkpoints/step-000012).",
        ),
    ],
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="Another evaluation, of the base model: also print paired differences, and what each solves alone. A "
            "directory that `megarl eval` made, or RUN/eval/step-000000.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="LINK",
            help="A symbolic link that leads to the evaluation, so that one command begins it and goes on with it: "
            "where it leads to one, what is answered there is not asked again.",
        ),
    ] = None,
) -> None:
    """Evaluate a model on the benchmarks of a configuration: mean@k, pass@k, maj@k, with intervals.

    CONFIG is that of the run that made the weights, unless one is given. A fragment is laid over that.
    """
    from megarl.cli.evaluated_model import check_evaluation, find_evaluated, load_evaluation
    from megarl.config.loader import source_files, told_apart

    config, given = told_apart(config, overrides or ())
    model = find_evaluated(source)
    run_config = load_evaluation(model, config, given)
    check_evaluation(run_config, model)
    from megarl.cli.evaluate import run_eval

    files = [*([config] if config else [model.run.config_path] if model.run else []), *source_files(given)]
    raise typer.Exit(run_eval(run_config, model, sources=files, base=base, run=run))
