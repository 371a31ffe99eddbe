"""`megarl ablate`. What it runs is imported when it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megarl.config.base import ConfigError
from megarl.config.loader import is_override

if TYPE_CHECKING:
    from megarl.cli.ablate import ResumeOptions

AblationPath = Annotated[Path | None, typer.Argument(metavar="ABLATION", help="TOML file, as in configs/ablations/.")]
AblationOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FRAGMENT.toml|a.b=value",
        help="at_once=2, seeds=[0] and so on change the file's own fields. Anything else is laid over all runs, as "
        "`megarl train` takes it: train.steps=10, or a FRAGMENT.toml.",
    ),
]


def ablate(
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the runs alone.")] = False,
) -> None:
    """Compare settings: run each with several seeds, and tabulate what differs.

    Exit code 0 where all runs are finished, 1 where some are not, 2 where nothing was begun because something is wrong.
    """
    console = Console()
    if resume is not None:
        from megarl.cli.ablate import resume_ablate

        options = _resume_options([*([str(ablation)] if ablation else []), *(overrides or ())])
        raise typer.Exit(resume_ablate(console, resume, options))
    if ablation is None or is_override(str(ablation)):
        raise ConfigError("megarl ablate: expected an ABLATION file or --resume DIR; e.g. megarl ablate my-grid.toml")
    from megarl.cli.ablate import run_ablate

    raise typer.Exit(run_ablate(console, ablation, overrides or (), dry_run=dry_run))


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
