"""What `megarl plan` plans: a run's configuration, or a model with the schema's defaults, changed by its options.

Everything that makes a layout impossible is refused here, all of it in one ConfigError.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.loader import load_section
from megarl.config.preflight import check_shape, is_hub_name
from megarl.config.run import RunConfig
from megarl.models.serving import check_engine_split
from megarl.models.shape import ModelError, ModelShape, parse_model_config
from megarl.parallel.grid import RankGrid
from megarl.reshard.topology import Topology, pack_nodes

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A layout that can work."""

    model: str
    """CONFIG itself where it is a model, else model.path."""
    config: RunConfig
    shape: ModelShape
    grid: RankGrid
    topology: Topology


def load_planned(path: Path, arguments: Sequence[str], options: PlanOptions) -> Planned:
    """The configuration of `megarl plan CONFIG [...]`, its model and its layout.

    path: a TOML file, a model directory or a config.json. The last two, and any option, mean a cluster with as many
    nodes as it takes; a file alone means the cluster it describes. Raises ConfigError with every problem found.
    """
    own_file = _model_file(path)
    arguments = [*(_model_arguments(path) if own_file else ()), *arguments]
    config = _load(path, own_file is not None, arguments, options)
    file = own_file or Path(config.model.path) / "config.json"
    if not file.parent.is_dir():
        raise ConfigError(_describe_missing(config.model.path))
    if problems := list(check_shape(config, file)):
        raise ConfigError("\n".join(problems), problems)
    try:
        shape = parse_model_config(json.loads(file.read_text(encoding="utf-8")))
    except ModelError as error:
        raise ConfigError(f"{file}: {error}") from None
    parallel = config.parallel
    grid = RankGrid(tensor=parallel.tensor, pipeline=parallel.pipeline, data=parallel.data)
    topology = _topology(config, grid)
    if problems := [*_check_engines(config, shape), *_check_nodes(config, topology)]:
        raise ConfigError("\n".join(problems), problems)
    model = str(path) if own_file else config.model.path
    return Planned(model=model, config=config, shape=shape, grid=grid, topology=topology)


def nodes_of(topology: Topology) -> int:
    """Nodes that policy and engines take."""
    return max(*topology.trainer_nodes, *topology.taker_nodes) + 1


def _model_file(path: Path) -> Path | None:
    """The config.json, where CONFIG is a model and no TOML file."""
    if path.suffix == ".json":
        return path
    return path / "config.json" if path.is_dir() else None


def _model_arguments(path: Path) -> tuple[str, ...]:
    directory = path.parent if path.suffix == ".json" else path
    return *_DEFAULTS, f"model.path={json.dumps(str(directory))}"


def _load(path: Path, is_model: bool, arguments: Sequence[str], options: PlanOptions) -> RunConfig:
    """The configuration with the options laid over it. For a model, or with options, first on a cluster without end, to
    see how many nodes it takes."""

    def load(*more: str) -> RunConfig:
        laid = [*arguments, *options.overrides.values(), *more]
        return load_section(None if is_model else path, laid, RunConfig)

    endless_error: ConfigError | None = None
    if is_model or options.overrides:
        try:
            endless = load(f"cluster.nodes={_ANY_NUMBER_OF_NODES}")
        except ConfigError as error:
            endless_error = error
        else:
            parallel = endless.parallel
            grid = RankGrid(tensor=parallel.tensor, pipeline=parallel.pipeline, data=parallel.data)
            return load(f"cluster.nodes={nodes_of(_topology(endless, grid))}")
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


def _topology(config: RunConfig, grid: RankGrid) -> Topology:
    rollout = config.rollout
    return pack_nodes(
        grid=grid, engines=rollout.engines, tensor=rollout.tensor, gpus_per_node=config.cluster.gpus_per_node
    )


def _describe_missing(name: str) -> str:
    if is_hub_name(name):
        local = f"models/{name.rpartition('/')[2]}"
        return (
            f'model.path "{name}": expected a local directory with config.json, found a hub name; fetch that file with '
            f"`hf download {name} config.json --local-dir {local}` and set model.path={local}"
        )
    return (
        f'model.path "{name}": no such directory (looked at {Path(name).absolute()}); only its config.json is needed: '
        f"`hf download OWNER/NAME config.json --local-dir {name}`, or correct the path"
    )


def _check_engines(config: RunConfig, shape: ModelShape) -> Iterator[str]:
    try:
        check_engine_split(shape, config.rollout.tensor)
    except ModelError as error:
        yield f"rollout.tensor: {error}"


def _check_nodes(config: RunConfig, topology: Topology) -> Iterator[str]:
    """A tensor group on several nodes, as `megarl train` refuses it, and engines that the nodes left cannot hold."""
    tensor, per_node = config.parallel.tensor, config.cluster.gpus_per_node
    for first in range(0, len(topology.trainer_nodes), tensor):
        nodes = topology.trainer_nodes[first : first + tensor]
        if len(set(nodes)) > 1:
            yield (
                f"parallel.tensor {tensor}: policy ranks {first} to {first + tensor - 1} are one tensor-parallel group "
                f"and lie on nodes {nodes[0]} and {nodes[-1]} of {per_node} GPUs; choose a divisor of "
                f"cluster.gpus_per_node {per_node}"
            )
            break
    if nodes_of(topology) > config.cluster.nodes:
        yield (
            f"policy and engines take {nodes_of(topology)} nodes of {per_node} GPUs, since an engine of rollout.tensor "
            f"{config.rollout.tensor} lies on one node, but cluster.nodes is {config.cluster.nodes}; raise it, or "
            "choose a policy that leaves whole engines free"
        )
