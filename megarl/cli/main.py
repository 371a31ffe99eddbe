"""The `megarl` command: `megarl VERB CONFIG [FRAGMENT.toml ...] [a.b=value ...]`.

Nothing heavy is imported here: a verb imports what it runs. A ConfigError ends with its text and exit code 2.
"""

import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from megarl.cli.run_again import Given, RunAgain, start_again
from megarl.config.base import ConfigError

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


def _examples(*lines: str) -> str:
    """Examples for the end of a verb's help, one a line."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


def _replaced(config: Path, overrides: list[str] | None) -> tuple[str, ...]:
    """What a fragment took from an earlier file: a line for each, as `show` has them."""
    from megarl.cli.show import describe_replacements
    from megarl.config.loader import find_replacements

    return describe_replacements(find_replacements(config, overrides or ()))


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


@app.command(
    epilog=_examples(
        "megarl train configs/quickstart.toml",
        "megarl train configs/quickstart.toml train.steps=10 objective.clip.high=inf",
        "megarl train configs/quickstart.toml configs/methods/flexec-id.toml configs/methods/tis.toml name=flexec",
        "megarl train configs/quickstart.toml model.path=models/Qwen2.5-1.5B-Instruct cluster.ray_address=auto",
        "megarl train --resume runs/latest",
        "megarl train --resume runs/latest train.steps=60 parallel.tensor=1",
        "megarl train --resume runs/latest policy.optimizer.lr=1e-6 --allow-change policy.optimizer.lr",
        "megarl train configs/quickstart.toml --run runs/mine   (again after a crash: goes on)",
    )
)
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
        raise typer.Exit(_go_on(run, None, (), allow_change or ()))
    if resume is not None:
        raise typer.Exit(_go_on(resume, config, overrides or (), allow_change or ()))
    if allow_change:
        raise ConfigError("megarl train --allow-change: there is nothing to change without --resume RUN")
    if config is None:
        raise ConfigError(
            "megarl train: expected a CONFIG file or --resume RUN; e.g. megarl train configs/quickstart.toml"
        )
    from megarl.cli.preflight import check_files
    from megarl.cli.start_weights import find_start_problems
    from megarl.config.loader import load_config, source_files

    run_config = load_config(config, overrides or ())
    check_files(run_config, find_start_problems(run_config))
    from megarl.cli.train import run_train

    sources = [config, *source_files(overrides or ())]
    raise typer.Exit(run_train(run_config, sources=sources, replaced=_replaced(config, overrides), link=run))


def _go_on(path: Path, config: Path | None, overrides: Sequence[str], allowed: Sequence[str]) -> int:
    from megarl.cli.preflight import check_files
    from megarl.cli.resume import Arguments, resume
    from megarl.cli.start_weights import find_start_problems

    arguments = Arguments.of(config, overrides, allowed)
    run_config, resumed = resume(path, arguments)
    check_files(resumed.placed(run_config), () if resumed.checkpoint else find_start_problems(run_config))
    from megarl.cli.train import run_train

    return run_train(run_config, sources=arguments.sources, resumed=resumed)


@app.command(
    epilog=_examples(
        "megarl sft configs/quickstart.toml",
        "megarl sft configs/quickstart.toml sft.steps=50 sft.optimizer.lr=2e-5",
    )
)
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Warm-start on the data set's own answers, before `train`."""
    from megarl.cli.preflight import check_files
    from megarl.config.loader import load_config, source_files

    run_config = load_config(config, overrides or ())
    if run_config.sft is None:
        text = f"{config}: sft: missing; expected a table, e.g. sft.steps=50 sft.batch_examples=32"
        raise ConfigError(text)
    check_files(run_config)
    from megarl.cli.sft import run_sft

    sources = [config, *source_files(overrides or ())]
    raise typer.Exit(run_sft(run_config, sources=sources, replaced=_replaced(config, overrides)))


@app.command(
    epilog=_examples(
        "megarl show configs/quickstart.toml",
        "megarl show configs/quickstart.toml configs/methods/dapo.toml parallel.tensor=2 > resolved.toml",
        "megarl show --fields",
    )
)
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


@app.command(
    epilog=_examples(
        "megarl plan configs/papers/dapo-qwen2.5-32b-16nodes.toml",
        "megarl plan configs/shapes/llama-3-70b.json parallel.sequence=true --gpus 64 --tensor 8 --pipeline 4 "
        "--engines 4 --rollout-tensor 8",
        "megarl plan configs/shapes/qwen2.5-7b.json --gpus 8 --tensor 4 policy.recompute=full --json",
    )
)
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


@app.command(
    epilog=_examples(
        "megarl doctor",
        "megarl doctor configs/quickstart.toml train.steps=10",
        "megarl doctor --deep",
    )
)
def doctor(
    config: OptionalConfigPath = None,
    overrides: Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start a real Ray cluster for a moment.")] = False,
) -> None:
    """Check this machine, its packages and a configuration; exit code 1 when something must be changed."""
    from megarl.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(Console(), config, overrides or (), deep=deep))


@app.command(
    epilog=_examples(
        "megarl theory",
        "megarl theory pairs.vocabulary=200 pairs.old_scale=3 pairs.drift=0.4 --output runs/peaked",
        "megarl theory configs/theory.toml multi_step.rollouts=0",
    )
)
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


@app.command(
    epilog=_examples(
        "megarl report runs/latest",
        "megarl report runs/quickstart-train-20261121T205700Z runs/quickstart-sft-20261121T205500Z",
    )
)
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directory; `latest` beside them is the newest.")
    ],
) -> None:
    """Draw the figures and report.html of any run anew, and say how it stands: running, finished, failed, killed."""
    from megarl.cli.report import run_report

    raise typer.Exit(run_report(runs))


@app.command(
    epilog=_examples(
        "megarl submit configs/papers/dapo-qwen2.5-32b-16nodes.toml --time 24:00:00 --partition gpu --account lab",
        "megarl submit my.toml configs/methods/dapo.toml train.steps=200 --nodes 4 --gpus-per-node 8 --dry-run",
        "megarl submit my.toml --array train.seed=[0,1,2] --array objective.clip.high=[0.2,0.28] --at-once 2",
        "megarl submit my.toml --nodes 2 --container images/megarl.sif --mount /data:/data",
    )
)
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


@app.command(
    epilog=_examples(
        "megarl status runs/jobs/quickstart-20261128T140000Z",
        "megarl status runs/latest",
    )
)
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


@app.command(
    epilog=_examples(
        "megarl convert models/Qwen2.5-7B checkpoints/qwen --tensor 4 --pipeline 2",
        "megarl convert runs/latest models/mine --check",
        "megarl convert checkpoints/qwen models/half --to hf --dtype float16 --shard-gb 2",
        "megarl convert checkpoints/qwen checkpoints/qwen-tp8 --to dist --tensor 8",
        "megarl convert save/iter_0001000 models/mine --model models/Qwen2.5-7B",
    )
)
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
