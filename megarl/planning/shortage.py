"""Why nodes do not hold the workers of a run: which resource is missing, and where."""

from collections.abc import Iterable, Iterator, Sequence

from megarl.config.base import ConfigError
from megarl.planning.resources import Node, Resources, Workers, room

_SHOWN_NODES = 3


class ShortageError(ConfigError):
    """The nodes do not hold the workers."""


class ScatteredError(ShortageError):
    """They have enough of everything, but not where it is needed together."""


def holds_all(nodes: Sequence[Node], workers: Workers) -> bool:
    """Whether there is enough of everything, wherever it is."""
    return not any(True for _ in _amounts_missing(nodes, workers))


def describe_shortage(nodes: Sequence[Node], workers: Workers, *, parts: Sequence[Sequence[int]]) -> str:
    """For a person, of nodes that do not hold the workers. parts: the nodes that may hold a tensor group together."""
    found = {kind: sum(node.free.get(kind, 0.0) for node in nodes) for kind in workers.needs}
    reasons = [
        *_amounts_missing(nodes, workers),
        *_groups_too_large(nodes, workers, parts),
        *_engines_too_large(nodes, workers),
        *_cpus_too_few(nodes, workers),
    ] or [
        f"room for {workers.groups} tensor-parallel groups of {workers.tensor} beside {workers.engines} engines of "
        f"{workers.engine_tensor}, none of them divided: every node leaves a part over"
    ]
    lines = [
        f"the Ray cluster cannot place {workers}: needed {_list(workers.needs)}, found {_list(found)} free on "
        f"{_count(len(nodes), 'node')}",
        *(f"  missing: {reason}" for reason in reasons),
        *(f"  {line}" for line in _describe_nodes(nodes, kinds=workers.needs)),
        "Add nodes, free them of other jobs, or lower parallel.world_size, parallel.tensor, rollout.engines or "
        "rollout.tensor",
    ]
    return "\n".join(lines)


def _amounts_missing(nodes: Sequence[Node], workers: Workers) -> Iterator[str]:
    for kind, needed in workers.needs.items():
        # Parts of a unit, on different nodes, are no unit.
        found = sum(int(node.free.get(kind, 0.0)) for node in nodes)
        if found < needed:
            yield f"{needed - found:g} {kind} in all"


def _groups_too_large(nodes: Sequence[Node], workers: Workers, parts: Sequence[Sequence[int]]) -> Iterator[str]:
    rooms = [sum(room(nodes[at].free, workers.rank_needs) for at in part) for part in parts]
    if max(rooms, default=0) >= workers.tensor or workers.tensor == 1:
        return
    where = "on one node" + (" or in one NVLink domain" if len(parts) < len(nodes) else "")
    most = f"; {_most(rooms, parts, nodes)}" if any(rooms) else ""
    yield f"room {where} for a tensor-parallel group of {workers.tensor} policy ranks (parallel.tensor){most}"


def _most(rooms: Sequence[int], parts: Sequence[Sequence[int]], nodes: Sequence[Node]) -> str:
    part = parts[rooms.index(max(rooms))]
    return f"the most is {_count(max(rooms), 'rank')}, on {_names([nodes[at].name for at in part])}"


def _engines_too_large(nodes: Sequence[Node], workers: Workers) -> Iterator[str]:
    if workers.engines and not workers.shared and not any(room(node.free, workers.engine_needs) for node in nodes):
        yield f"one node with {_list(workers.engine_needs)} free for an engine (rollout.tensor {workers.engine_tensor})"


def _cpus_too_few(nodes: Sequence[Node], workers: Workers) -> Iterator[str]:
    """Where GPUs, of which there are enough, cannot be used because Ray has no CPU to go with them."""
    if not workers.on_gpu or sum(int(node.free.get("GPU", 0.0)) for node in nodes) < workers.needs["GPU"]:
        return
    each = workers.rank_needs["CPU"]
    idle = [node for node in nodes if node.free.get("CPU", 0.0) < each * int(node.free.get("GPU", 0.0))]
    if idle:
        yield (
            f"CPU on {_names([node.name for node in idle])}, with fewer of them free than {_for_gpus(each)}: every "
            "policy rank and every engine takes one; show Ray more (`ray start --num-cpus`, Slurm's --cpus-per-task)"
        )


def _for_gpus(each: float) -> str:
    return "GPU" if each == 1 else f"{each:g} a GPU"


def _describe_nodes(nodes: Sequence[Node], *, kinds: Iterable[str]) -> Iterator[str]:
    """What is free, nodes with the same in one line."""
    alike: dict[str, list[str]] = {}
    for node in nodes:
        alike.setdefault(_describe_free(node, kinds), []).append(node.name)
    for free, names in alike.items():
        yield f"{_names(names)}: {free} free"


def _describe_free(node: Node, kinds: Iterable[str]) -> str:
    def describe(kind: str) -> str:
        free = node.free.get(kind, 0.0)
        total = free if node.total is None else node.total.get(kind, 0.0)
        return f"{free:g} {kind}" if total == free else f"{free:g} of {total:g} {kind}"

    return " and ".join(map(describe, kinds))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NODES} more" if len(names) > _SHOWN_NODES else ""
    return ", ".join(names[:_SHOWN_NODES]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
