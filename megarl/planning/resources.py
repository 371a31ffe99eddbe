"""What the nodes of a cluster have, and what the workers of a run need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from megarl.config.run import RunConfig

Resources = Mapping[str, float]
"""Ray's names of what a worker needs and a node has -> how much: "CPU", "GPU"."""


def room(free: Resources, need: Resources) -> int:
    """Workers that fit."""
    return max(0, min(int(free.get(kind, 0.0) // amount) for kind, amount in need.items()))


def without(free: Resources, need: Resources, count: int) -> dict[str, float]:
    """What `count` workers leave of the kinds that they need."""
    return {kind: free.get(kind, 0.0) - count * amount for kind, amount in need.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, and what of it is free."""

    name: str
    """For messages."""
    free: Resources
    ray_id: str = ""
    """Ray's name of it, where it is of a cluster."""
    total: Resources | None = None
    """What it has when nothing is in use, for messages; None: as much as is free."""
    domain: str = ""
    """The NVLink domain that its GPUs share with those of other nodes; "" where the links end at the node."""
    switches: tuple[str, ...] = ()
    """Of the network between the nodes, from the top one to the node's own; () where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a run."""

    ranks: int
    """Policy ranks."""
    tensor: int
    """Neighbouring policy ranks that must share a node or an NVLink domain."""
    engines: int
    engine_tensor: int
    """Tensor ranks of an engine, which share a node."""
    on_gpu: bool
    """Without, a policy rank or an engine is one logical CPU, however many cores there are: they take turns."""
    shared: bool = False
    """Engines lie on GPUs of policy ranks (cluster.colocate), and take turns with them."""

    @classmethod
    def of(cls, config: RunConfig, *, engines: int, on_gpu: bool) -> Self:
        """The workers of a configuration, with so many engines."""
        parallel = config.parallel
        return cls(
            ranks=parallel.world_size,
            tensor=parallel.tensor,
            engines=engines,
            engine_tensor=config.rollout.tensor,
            on_gpu=on_gpu,
            shared=config.cluster.colocate and engines > 0,
        )

    @property
    def groups(self) -> int:
        """Tensor-parallel groups of the policy."""
        return self.ranks // self.tensor

    @property
    def rank_needs(self) -> dict[str, float]:
        """Of one policy rank, and of the engine's worker that shares its place."""
        if not self.on_gpu:
            return {"CPU": 1.0}
        return {"CPU": 2.0 if self.shared else 1.0, "GPU": 1.0}

    @property
    def group_needs(self) -> dict[str, float]:
        """Of one tensor-parallel group."""
        return {kind: amount * self.tensor for kind, amount in self.rank_needs.items()}

    @property
    def engine_needs(self) -> dict[str, float]:
        """Of one engine with a place of its own."""
        return {"CPU": 1.0, "GPU": float(self.engine_tensor)} if self.on_gpu else {"CPU": 1.0}

    @property
    def half(self) -> dict[str, float]:
        """Of a shared place: what Ray gives the policy rank, and the engine whose first GPU it is."""
        return {"CPU": 1.0, "GPU": 0.5} if self.on_gpu else {"CPU": 0.5}

    @property
    def needs(self) -> dict[str, float]:
        """Of all together; what is shared counts once."""
        rank, engine = self.rank_needs, self.engine_needs
        engines = 0 if self.shared else self.engines
        return {kind: self.ranks * rank[kind] + engines * engine[kind] for kind in rank}

    def __str__(self) -> str:
        where = " on their GPUs" if self.shared else ""
        return f"{self.ranks} policy ranks and {self.engines} engines of {self.engine_tensor}{where}"
