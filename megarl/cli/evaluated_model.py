"""Which weights `megarl eval SOURCE` means, and with which configuration they are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_files import HF_DIRECTORY
from megarl.checkpoint.run_checkpoint import RunCheckpoint
from megarl.checkpoint.source_path import FoundCheckpoint, find_checkpoint
from megarl.cli.machine_paths import find_path_problems
from megarl.cli.paths import shown_path
from megarl.cli.train_checks import find_benchmark_problems
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.policy import ParallelConfig
from megarl.config.preflight import check_model_files
from megarl.config.run import RunConfig
from megarl.config.toml_files import read_files
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.planning.checks import check_layout
from megarl.telemetry.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """Weights, and where their tokenizer is."""

    path: Path
    """A Hugging Face checkpoint, or a torch.distributed.checkpoint, whose weights engines are sent."""
    is_dist: bool
    run: RunDirectory | None
    """That made them, where they lie in one."""
    saved: RunCheckpoint | None = None
    """What that run says of a torch.distributed.checkpoint."""

    @property
    def text_path(self) -> Path:
        """Directory of config.json and the tokenizer."""
        return self.path / HF_DIRECTORY if self.is_dist else self.path


def find_evaluated(source: Path) -> EvaluatedModel:
    """A model's directory, the newest export of a run, or a torch.distributed.checkpoint.

    ConfigError, with what is there instead, where it is none of them.
    """
    given = source.expanduser()
    if (given / "state.json").is_file():
        return _newest_export(RunDirectory(given.resolve()))
    try:
        found: FoundCheckpoint = find_checkpoint(given)
    except (CheckpointError, OSError) as error:
        raise ConfigError(f"megarl eval {source}: {error}") from error
    path = found.path.resolve()
    if found.kind == "dist" and not (path / HF_DIRECTORY / "config.json").is_file():
        raise ConfigError(
            f"megarl eval {source}: {path} has no {HF_DIRECTORY}/ with config.json and the tokenizer; convert it "
            f"first: megarl convert {source} TARGET --model MODEL"
        )
    holder = path.parent.parent
    return EvaluatedModel(
        path=path,
        is_dist=found.kind == "dist",
        saved=found.of_run,
        run=RunDirectory(holder) if (holder / "state.json").is_file() else None,
    )


def _newest_export(run: RunDirectory) -> EvaluatedModel:
    exports = sorted(run.exports.glob("step-*")) if run.exports.is_dir() else []
    if not exports:
        saved = sorted(path.name for path in run.checkpoints.glob("step-*")) if run.checkpoints.is_dir() else []
        hint = (
            f"name one of its checkpoints, e.g. {shown_path(run.checkpoints / saved[-1])}"
            if saved
            else ("they are written after its last step, and every train.export_every steps")
        )
        raise ConfigError(f"megarl eval: {shown_path(run.path)} has exported no weights yet; {hint}")
    return EvaluatedModel(path=exports[-1], is_dist=False, run=run)


def load_evaluation(model: EvaluatedModel, config: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration that was given, or that of the run that made the weights; of this model, whatever it names.

    config: without a `name` it is a fragment, laid over the run's. ConfigError where there is none, or it has no
    benchmark.
    """
    if config is not None and model.run is not None and "name" not in read_files([config])[config]:
        config, overrides = None, [str(config), *overrides]
    if config is None and model.run is None:
        raise ConfigError(
            f"megarl eval: {shown_path(model.path)} is of no run, whose configuration would be taken; name a CONFIG"
        )
    chosen = config if config is not None else _config_of(model.run)
    loaded = load_config(chosen, [*overrides, f"model.path={_quoted(model.text_path)}"])
    if not loaded.eval.benchmarks:
        raise ConfigError(
            f"{shown_path(chosen)}: there is no benchmark; add a table [eval.benchmarks.NAME], or a fragment such as "
            "configs/benchmarks/math.toml"
        )
    return loaded


def check_evaluation(config: RunConfig, model: EvaluatedModel) -> None:
    """One ConfigError with everything that is wrong with the files and the engines of an evaluation."""
    problems = list(find_benchmark_problems(config))
    if not model.is_dist:
        problems += check_model_files(config, model.path)
    try:
        # No policy rank has a share of the model.
        problems += check_layout(
            config.model_copy(update={"parallel": ParallelConfig()}), read_model_shape(config.model.path)
        )
    except ModelError as error:
        problems.append(f"{shown_path(model.path)}: {error}")
    problems += find_path_problems(config)
    if problems:
        raise ConfigError("\n".join(problems), problems)


def _config_of(run: RunDirectory | None) -> Path:
    assert run is not None, "a model of no run has no configuration"
    return run.config_path


def _quoted(path: Path) -> str:
    return f"'{path}'" if "'" not in str(path) else str(path)
