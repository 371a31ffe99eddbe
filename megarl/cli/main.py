"""The `megarl` command: `megarl VERB CONFIG [FRAGMENT.toml ...] [a.b=value ...]`.

Nothing heavy is imported here: a verb imports what it runs. A ConfigError ends with its text and exit code 2.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megarl.cli.ablation_verb import ablate
from megarl.cli.convert_verb import convert
from megarl.cli.evaluation_verb import evaluate
from megarl.cli.job_verbs import status, submit
from megarl.cli.looking_verbs import doctor, plan, report, show, theory, top
from megarl.cli.run_again import Given, RunAgain, start_again
from megarl.cli.training_verbs import sft, train
from megarl.config.base import ConfigError
from megarl.telemetry.run_lock import RunHeldError

app = typer.Typer(
    name="megarl",
    help="RLVR at Megatron scale: train, and study clipping and entropy.",
    epilog="After its TOML file a verb takes fragments and overrides, applied in order: "
    "megarl train configs/quickstart.toml configs/methods/dapo.toml train.steps=10",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    train: (
        "megarl train configs/quickstart.toml",
        "megarl train configs/quickstart.toml train.steps=10 objective.clip.high=inf",
        "megarl train configs/quickstart.toml configs/methods/flexec-id.toml configs/methods/tis.toml name=flexec",
        "megarl train configs/quickstart.toml model.path=models/Qwen2.5-1.5B-Instruct cluster.ray_address=auto",
        "megarl train --resume runs/latest",
        "megarl train --resume runs/latest train.steps=60 parallel.tensor=1",
        "megarl train --resume runs/latest policy.optimizer.lr=1e-6 --allow-change policy.optimizer.lr",
        "megarl train configs/quickstart.toml --run runs/mine   (again after a crash: goes on)",
    ),
    sft: (
        "megarl sft configs/quickstart.toml",
        "megarl sft configs/quickstart.toml sft.steps=50 sft.optimizer.lr=2e-5",
    ),
    evaluate: (
        "megarl eval runs/latest",
        "megarl eval runs/latest configs/benchmarks/math.toml eval.samples=64 --run runs/mine-eval   (again: goes on)",
        "megarl eval models/Qwen2.5-7B configs/mine.toml configs/benchmarks/math.toml --run runs/base-eval",
        "megarl eval runs/mine/checkpoints/step-000040 --base runs/base-eval",
    ),
    ablate: (
        "megarl ablate configs/ablations/true-reward-small.toml",
        "megarl ablate configs/ablations/true-reward-small.toml at_once=2 seeds=[0] train.steps=10 --dry-run",
        "megarl ablate --resume runs/true-reward-small-ablation-20261129T010000Z at_once=2",
        "megarl ablate configs/ablations/true-reward.toml --slurm --time 24:00:00 --partition gpu --at-once 4",
    ),
    show: (
        "megarl show configs/quickstart.toml",
        "megarl show configs/quickstart.toml configs/methods/dapo.toml parallel.tensor=2 > resolved.toml",
        "megarl show --fields",
    ),
    plan: (
        "megarl plan configs/papers/dapo-qwen2.5-32b-16nodes.toml",
        "megarl plan configs/shapes/llama-3-70b.json parallel.sequence=true --gpus 64 --tensor 8 --pipeline 4 "
        "--engines 4 --rollout-tensor 8",
        "megarl plan configs/shapes/qwen2.5-7b.json --gpus 8 --tensor 4 policy.recompute=full --json",
    ),
    doctor: (
        "megarl doctor",
        "megarl doctor configs/quickstart.toml train.steps=10",
        "megarl doctor --deep",
    ),
    theory: (
        "megarl theory",
        "megarl theory pairs.vocabulary=200 pairs.old_scale=3 pairs.drift=0.4 --output runs/peaked",
        "megarl theory configs/theory.toml multi_step.rollouts=0",
        "megarl theory runs/latest",
        "megarl theory runs/random-reward-small-ablation-20261129T010000Z --output runs/practice",
    ),
    report: (
        "megarl report runs/latest",
        "megarl report runs/low0.2-* runs/low0.3-* -o comparison.html",
        "megarl report runs/clip-ablation-20261121T205700Z",
        "megarl report runs/latest --watch   (in a browser, as the run goes on)",
        "megarl report runs/latest --figures",
        "megarl report runs/latest --figure entropy -o entropy.pdf --width double",
    ),
    top: (
        "megarl top runs/latest",
        "megarl top runs/quickstart-train-20261121T205700Z runs/clip-higher-train-20261121T220100Z",
        "megarl top runs/clip-ablation-20261129T010000Z --every 5",
        "megarl top runs/latest --once   (for a log)",
    ),
    submit: (
        "megarl submit configs/papers/dapo-qwen2.5-32b-16nodes.toml --time 24:00:00 --partition gpu --account lab",
        "megarl submit my.toml configs/methods/dapo.toml train.steps=200 --nodes 4 --gpus-per-node 8 --dry-run",
        "megarl submit my.toml --array train.seed=[0,1,2] --array objective.clip.high=[0.2,0.28] --at-once 2",
        "megarl submit my.toml --nodes 2 --container images/megarl.sif --mount /data:/data",
    ),
    status: (
        "megarl status runs/jobs/quickstart-20261128T140000Z",
        "megarl status runs/latest",
    ),
    convert: (
        "megarl convert models/Qwen2.5-7B checkpoints/qwen --tensor 4 --pipeline 2",
        "megarl convert runs/latest models/mine --check",
        "megarl convert checkpoints/qwen models/half --to hf --dtype float16 --shard-gb 2",
        "megarl convert checkpoints/qwen checkpoints/qwen-tp8 --to dist --tensor 8",
        "megarl convert save/iter_0001000 models/mine --model models/Qwen2.5-7B",
    ),
}
"""Of every verb, in the order of the help."""


def _examples(*lines: str) -> str:
    """Examples for the end of a verb's help, one a line."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"megarl {importlib.metadata.version('megarl')}")
        raise typer.Exit()


@app.callback()
def _megarl(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    # Options of the command itself. No docstring: it would replace the help of `app`.
    return


_NAMES: dict[Callable[..., None], str] = {evaluate: "eval"}
"""Of verbs that Python has a function of that name for."""

for _verb, _lines in _EXAMPLES.items():
    app.command(_NAMES.get(_verb), epilog=_examples(*_lines))(_verb)


def main() -> None:
    """Entry point of the console script."""
    given = Given.now()
    try:
        app()
    except RunAgain as again:
        start_again(again.run, given)
    except ConfigError as error:
        _print_error(str(error))
        sys.exit(2)
    except RunHeldError as error:
        _print_error(str(error))
        sys.exit(1)
    except OSError as error:
        from megarl.cli.machine_paths import WRITE_ERRORS, describe_write_error

        if error.errno not in WRITE_ERRORS:
            raise
        _print_error(describe_write_error(error, Path.cwd()))
        sys.exit(1)


def _print_error(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False, style="red")


if __name__ == "__main__":
    main()
