"""`megarl convert`. What it runs is imported when it does."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console


def convert(  # noqa: PLR0913, PLR0917  (options of the command line)
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Directory of a Hugging Face checkpoint (safetensors), of a torch.distributed.checkpoint as "
            "Megatron-core and megarl write it, or of a run or of what Megatron saves into, whose newest checkpoint is "
            "taken.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Directory to write; new or empty.")],
    to: Annotated[
        Literal["hf", "dist"] | None, typer.Option(help="What to write; the other kind than SOURCE by default.")
    ] = None,
    tensor: Annotated[
        int | None, typer.Option(min=1, help="Tensor ranks by whose shares `dist` is cut; any layout loads it.")
    ] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, help="Pipeline stages, as --tensor.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32", "float16"] | None,
        typer.Option(
            help="Of the weights, which are rounded, and refused where one would become infinite; as they are by "
            "default. What an optimizer keeps stays as it is."
        ),
    ] = None,
    shard_gb: Annotated[
        float,
        typer.Option(min=0.001, help="Where a file ends, in GB (1e9 bytes); a larger tensor has one of its own."),
    ] = 5.0,
    model: Annotated[
        Path | None,
        typer.Option(help="Directory of config.json and the tokenizer, where SOURCE has none or others are meant."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare what was written with SOURCE, bit for bit, before it gets its name."),
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work; each has its memory.")] = 1,
) -> None:
    """Convert a checkpoint between Hugging Face and torch.distributed.checkpoint, on the CPU and in bounded memory."""
    from megarl.cli.convert import ConvertOptions, run_convert

    options = ConvertOptions(
        to=to,
        tensor=tensor,
        pipeline=pipeline,
        dtype=dtype,
        shard_gb=shard_gb,
        model=model,
        check=check,
        processes=processes,
    )
    raise typer.Exit(run_convert(Console(), source, target, options))
