"""`megarl train` and `megarl sft`. What they run is imported when they do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from megarl.cli.arguments import ConfigPath, OptionalConfigPath, Overrides, replaced
from megarl.config.base import ConfigError


def train(
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with a run that stopped: its directory (runs/latest is the newest), or one of its checkpoints. "
            "CONFIG is then the run's own, unless one is given.",
        ),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change",
            metavar="a.b",
            help="With --resume: a field or table that may be other than it was, though the run is then another one.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="LINK",
            help="A symbolic link that leads to the run, so that one command begins it and goes on with it: where it "
            "leads to a run, that goes on as it was configured; else a new run begins, and the link is made.",
        ),
    ] = None,
) -> None:
    """Train by reinforcement learning with verifiable rewards."""
    if run is not None and resume is not None:
        raise ConfigError("megarl train: --run LINK goes on with a run by itself; leave out --resume")
    if run is not None and run.exists():
        raise typer.Exit(_go_on(run, None, (), allow_change or (), patient=True))
    if resume is not None:
        raise typer.Exit(_go_on(resume, config, overrides or (), allow_change or ()))
    if allow_change:
        raise ConfigError("megarl train --allow-change: there is nothing to change without --resume RUN")
    if config is None:
        raise ConfigError(
            "megarl train: expected a CONFIG file or --resume RUN; e.g. megarl train configs/quickstart.toml"
        )
    from megarl.cli.preflight import check_files
    from megarl.cli.train_checks import find_train_problems
    from megarl.config.loader import load_config, source_files

    run_config = load_config(config, overrides or ())
    check_files(run_config, find_train_problems(run_config))
    from megarl.cli.train import run_train

    sources = [config, *source_files(overrides or ())]
    raise typer.Exit(run_train(run_config, sources=sources, replaced=replaced(config, overrides), link=run))


def _go_on(
    path: Path, config: Path | None, overrides: Sequence[str], allowed: Sequence[str], *, patient: bool = False
) -> int:
    from megarl.cli.preflight import check_files
    from megarl.cli.resume import Arguments, resume
    from megarl.cli.train_checks import find_train_problems

    arguments = Arguments.of(config, overrides, allowed)
    run_config, resumed = resume(path, arguments, patient=patient)
    problems = find_train_problems(run_config, begins=not resumed.checkpoint)
    check_files(resumed.placed(run_config), problems)
    from megarl.cli.train import run_train

    return run_train(run_config, sources=arguments.sources, resumed=resumed)


def sft(
    config: ConfigPath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="LINK",
            help="A symbolic link that is made to lead to the run. Where it leads to one that is finished, nothing is "
            "done; one that has stopped cannot go on, and a new run begins.",
        ),
    ] = None,
) -> None:
    """Warm-start on the data set's own answers, before `train`."""
    from megarl.cli.preflight import check_files
    from megarl.config.loader import load_config, source_files

    run_config = load_config(config, overrides or ())
    if run_config.sft is None:
        text = f"{config}: sft: missing; expected a table, e.g. sft.steps=50 sft.batch_examples=32"
        raise ConfigError(text)
    if run is not None and _is_finished(run):
        print(f"nothing to do: {run.resolve()} is finished")
        return
    check_files(run_config)
    from megarl.cli.sft import run_sft

    sources = [config, *source_files(overrides or ())]
    raise typer.Exit(run_sft(run_config, sources=sources, replaced=replaced(config, overrides), link=run))


def _is_finished(link: Path) -> bool:
    """Whether the run that the link leads to is. ConfigError where it still runs, or is none."""
    from megarl.telemetry.run_directory import RunDirectory

    try:
        standing = RunDirectory.open(link).standing()[0] if link.exists() else None
    except FileNotFoundError as error:
        raise ConfigError(f"megarl sft --run: {error}") from error
    if standing == "running":
        raise ConfigError(f"megarl sft --run {link}: {link.resolve()} is still running; stop it first")
    return standing == "finished"
