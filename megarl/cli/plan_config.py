"""What `megarl plan` plans: a run's configuration, or a model with the schema's defaults, changed by its options.

Everything that makes a layout impossible is refused here, all of it in one ConfigError.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.hub_names import is_hub_name
from megarl.config.loader import load_section
from megarl.config.run import RunConfig
from megarl.models.preflight import check_layout
from megarl.models.shape import ModelError, ModelShape, read_model_shape
from megarl.parallel.grid import RankGrid
from megarl.reshard.topology import Topology
from megarl.runtime.placement import Node, PlacementPlan, Workers, plan_placement

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
    config: RunConfig
    nodes_typed: bool
    """cluster.nodes was typed: no more may be taken."""
    shape: ModelShape
    grid: RankGrid
    topology: Topology
    num_nodes: int
    """That policy and engines take."""


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
    file, shape_file = _find_shape(config.model.path, near=path)
    try:
        shape = read_model_shape(file)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    problems = list(check_layout(config, shape))
    plan, nodes = _place(config)
    if not problems:
        problems = list(_check_nodes(config, plan, nodes))
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return Planned(
        model=config.model.path,
        shape_file=shape_file,
        config=config,
        nodes_typed=_typed(arguments, "cluster.nodes") is not None,
        shape=shape,
        grid=RankGrid.of(config.parallel),
        topology=_topology(config, plan),
        num_nodes=plan.num_nodes,
    )


def nodes_needed(config: RunConfig) -> int:
    """Nodes that a configuration takes, however many it names."""
    return _place(config)[0].num_nodes


def _find_shape(model: str, *, near: Path) -> tuple[Path, Path | None]:
    """The config.json of model.path; where there is no such model, the shape of its name that stands in for it."""
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


def _place(config: RunConfig) -> tuple[PlacementPlan, list[Node]]:
    """Policy and engines on as many nodes of cluster.gpus_per_node as they take, placed as a run places them."""
    per_node, rollout = config.cluster.gpus_per_node, config.rollout
    count = math.ceil(config.parallel.world_size / per_node)
    count += math.ceil(rollout.engines / (per_node // rollout.tensor))
    nodes = [Node(str(index), {"CPU": per_node, "GPU": per_node}) for index in range(count)]
    return plan_placement(nodes, Workers.of(config, engines=rollout.engines, on_gpu=True)), nodes


def _topology(config: RunConfig, plan: PlacementPlan) -> Topology:
    rollout = config.rollout
    return Topology(
        grid=RankGrid.of(config.parallel),
        engines=rollout.engines,
        tensor=rollout.tensor,
        trainer_nodes=list(plan.rank_nodes),
        taker_nodes=[node for node in plan.engine_nodes for _ in range(rollout.tensor)],
    )


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


def _check_nodes(config: RunConfig, plan: PlacementPlan, nodes: Sequence[Node]) -> Iterator[str]:
    """A tensor group on several nodes, as `megarl train` refuses it, and more nodes than there are."""
    per_node = config.cluster.gpus_per_node
    if (text := plan.describe_divided(nodes)) is not None:
        yield (
            f"parallel.tensor {plan.tensor}: {text} of {per_node} GPUs; choose a divisor of cluster.gpus_per_node "
            f"{per_node}"
        )
    if plan.num_nodes > config.cluster.nodes:
        yield (
            f"policy and engines take {plan.num_nodes} nodes of {per_node} GPUs, since an engine of rollout.tensor "
            f"{config.rollout.tensor} lies on one node, but cluster.nodes is {config.cluster.nodes}; raise it, or "
            "choose a policy that leaves whole engines free"
        )
