"""What `megarl plan` plans: a run's configuration, or a model with the schema's defaults, changed by its options.

Everything that makes a layout impossible is refused here, all of it in one ConfigError.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.hub_names import is_hub_name
from megarl.config.loader import load_section
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError, ModelShape
from megarl.planning.checks import check_layout
from megarl.planning.nodes import PlacedRun, nodes_needed, place_run

_DEFAULTS = (
    "name=plan",
    "data.train={source = 'reasoning_gym', task = 'chain_sum'}",
    "reward.verifier={kind = 'random'}",
    "rollout.publish.transport=network",
)
"""What a configuration needs that has no default, where CONFIG is only a model."""

_ANY_NUMBER_OF_NODES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options that replace values of the configuration; None leaves them."""

    gpus: int | None = None
    tensor: int | None = None
    pipeline: int | None = None
    rollout_tensor: int | None = None
    engines: int | None = None
    gpus_per_node: int | None = None

    @property
    def overrides(self) -> dict[str, str]:
        """Option as it was typed -> the override it stands for."""
        values = (
            ("--gpus", "parallel.world_size", self.gpus),
            ("--tensor", "parallel.tensor", self.tensor),
            ("--pipeline", "parallel.pipeline", self.pipeline),
            ("--rollout-tensor", "rollout.tensor", self.rollout_tensor),
            ("--engines", "rollout.engines", self.engines),
            ("--gpus-per-node", "cluster.gpus_per_node", self.gpus_per_node),
        )
        return {f"{option} {value}": f"{path}={value}" for option, path, value in values if value is not None}

    def check_against(self, arguments: Sequence[str]) -> None:
        """ConfigError where an option and an override that were both typed disagree."""
        problems = []
        for option, stands_for in self.overrides.items():
            path, _, _ = stands_for.partition("=")
            other = _typed(arguments, path)
            if other is not None and other.replace(" ", "") != stands_for:
                problems.append(f"{option} and {other!r} both set {path}; leave out one of them")
        if problems:
            raise ConfigError("\n".join(problems), problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A layout that can work."""

    model: str
    """model.path: CONFIG itself where it is a model."""
    shape_file: Path | None
    """The shape that stands in for a model that is not on this machine; None where the model itself was read."""
    nodes_typed: bool
    """cluster.nodes was typed: no more may be taken."""
    shape: ModelShape
    placed: PlacedRun

    @property
    def config(self) -> RunConfig:
        return self.placed.config


def load_planned(path: Path, arguments: Sequence[str], options: PlanOptions) -> Planned:
    """The configuration of `megarl plan CONFIG [...]`, its model and its layout.

    path: a TOML file, a model directory or a config.json. The last two, and any option, mean a cluster with as many
    nodes as it takes, unless cluster.nodes was typed; a file alone means the cluster it describes. Raises ConfigError
    with every problem found.
    """
    options.check_against(arguments)
    is_model = path.is_dir() or path.suffix == ".json"
    model = (*_DEFAULTS, f"model.path={json.dumps(str(path))}") if is_model else ()
    config = _load(path, is_model, [*model, *arguments], options)
    file, shape_file = find_shape(config.model.path, near=path)
    try:
        shape = read_model_shape(file)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    problems = list(check_layout(config, shape))
    placed = place_run(config)
    if not problems:
        problems = list(placed.find_problems())
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return Planned(
        model=config.model.path,
        shape_file=shape_file,
        nodes_typed=_typed(arguments, "cluster.nodes") is not None,
        shape=shape,
        placed=placed,
    )


def find_shape(model: str, *, near: Path) -> tuple[Path, Path | None]:
    """(config.json of model.path, None); where there is no such model, the shape of its name that stands in for it,
    twice. near: the configuration's file, above which shapes/ is looked for. ConfigError where there is none."""
    file = Path(model)
    if file.suffix == ".json" or file.is_dir():
        return file, None
    name = f"{file.name.lower()}.json"
    parents = (near.absolute().parent, *near.absolute().parents, Path.cwd() / "configs")
    found = next((parent / "shapes" / name for parent in parents if (parent / "shapes" / name).is_file()), None)
    if found is None:
        raise ConfigError(_describe_missing(model))
    return found, found


def _typed(arguments: Sequence[str], path: str) -> str | None:
    """The override that was typed for a field, the last where there are several; it or its whole section."""
    keys = {path, path.rpartition(".")[0]}
    typed = [argument for argument in arguments if argument.partition("=")[0].strip() in keys and "=" in argument]
    return typed[-1] if typed else None


def _load(path: Path, is_model: bool, arguments: Sequence[str], options: PlanOptions) -> RunConfig:
    """The configuration with the options laid over it. For a model, or with options, first on a cluster without end, to
    see how many nodes it takes."""

    def load(*more: str) -> RunConfig:
        laid = [*arguments, *options.overrides.values(), *more]
        return load_section(None if is_model else path, laid, RunConfig)

    endless_error: ConfigError | None = None
    if (is_model or options.overrides) and _typed(arguments, "cluster.nodes") is None:
        try:
            endless = load(f"cluster.nodes={_ANY_NUMBER_OF_NODES}")
        except ConfigError as error:
            endless_error = error
        else:
            return load(f"cluster.nodes={nodes_needed(endless)}")
    try:
        return load()
    except ConfigError as error:
        problems = error.problems
        if problems == (str(error),):  # of a file that cannot be read
            raise
        if endless_error:  # what is wrong on any number of nodes
            problems = tuple(text for text in problems if text in endless_error.problems) or problems
        heading = str(path) if is_model else str(error).partition("\n")[0].rpartition(": ")[0]
        raise _describe(heading, problems, options) from None


def _describe(heading: str, problems: Sequence[str], options: PlanOptions) -> ConfigError:
    """One error with every problem, naming options as they were typed."""
    for option, override in options.overrides.items():
        problems = [text.replace(f"override {override!r}", option) for text in problems]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("\n".join([f"{heading}: {count}", *(f"  {text}" for text in problems)]), problems)


def _describe_missing(name: str) -> str:
    if is_hub_name(name):
        local = f"models/{name.rpartition('/')[2]}"
        return (
            f'model.path "{name}": expected a local directory with config.json, found a hub name; fetch that file with '
            f"`hf download {name} config.json --local-dir {local}` and set model.path={local}"
        )
    return (
        f'model.path "{name}": no such directory (looked at {Path(name).absolute()}), and no shapes/'
        f"{Path(name).name.lower()}.json beside the configuration; only the model's config.json is needed: "
        f"`hf download OWNER/NAME config.json --local-dir {name}`, or correct the path"
    )
