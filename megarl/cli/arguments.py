"""What verbs that read a configuration are given."""

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; configs/ has examples.")]
OptionalConfigPath = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="TOML file; configs/ has examples.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FRAGMENT.toml|a.b=value",
        help="What to change, in order. A file ending in .toml is laid over what came before, table by table "
        "(configs/methods/ has one per method). a.b=value sets a field to a TOML value, or to bare text for a string: "
        "inf is a number, {} turns an optional table on, false turns it off.",
    ),
]


def replaced(config: Path, overrides: list[str] | None) -> tuple[str, ...]:
    """What a fragment took from an earlier file: a line for each, as `show` has them."""
    from megarl.cli.show import describe_replacements
    from megarl.config.loader import find_replacements

    return describe_replacements(find_replacements(config, overrides or ()))
