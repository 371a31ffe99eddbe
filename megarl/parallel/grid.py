"""The rank grid of the policy: named axes, and the position of a global rank on each.

Megatron-core's default order (tp-cp-ep-dp-pp), the fastest axis first: tensor ranks are neighbours, then context, then
data, then pipeline. The expert layers of a stage lie on the same ranks by axes of their own, expert tensor, expert and
expert data, whose sizes multiply to the same number: a replica of an expert is not a replica of the data.

Invariant: an axis of size 1 changes no rank's number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from megarl.config.policy import ParallelConfig

AXES = ("tensor", "context", "data", "pipeline")
"""Of all layers but the experts."""
EXPERT_AXES = ("expert_tensor", "expert", "expert_data", "pipeline")
"""Of the experts of the same stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPosition:
    """A rank's place on every axis, from 0."""

    tensor: int
    context: int
    data: int
    pipeline: int
    expert_tensor: int
    expert: int
    expert_data: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGrid:
    """Sizes of the axes."""

    tensor: int
    pipeline: int
    data: int
    """Ranks that take other responses."""
    context: int = 1
    """Ranks that take other tokens of the same responses."""
    expert: int = 1
    """Ranks that hold other experts of a layer."""
    expert_tensor: int | None = None
    """Ranks that split each expert's matrices; None: as many as `tensor`."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in (*AXES, "expert")} | {"expert_tensor": self._expert_tensor}
        if small := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"an axis of the rank grid has at least 1 rank, found {small}")
        if self._stage_size % (self.expert * self._expert_tensor):
            raise ValueError(
                f"the {self._stage_size} ranks of a pipeline stage are not a multiple of expert {self.expert} x expert "
                f"tensor {self._expert_tensor}; choose sizes that divide them"
            )

    @classmethod
    def of(cls, parallel: ParallelConfig) -> Self:
        """The grid of a configuration; ConfigError where its world size does not divide."""
        return cls(tensor=parallel.tensor, pipeline=parallel.pipeline, data=parallel.data)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size of every axis by name, experts' too."""
        expert_data = self._stage_size // (self.expert * self._expert_tensor)
        experts = {"expert_tensor": self._expert_tensor, "expert": self.expert, "expert_data": expert_data}
        return {name: getattr(self, name) for name in AXES} | experts

    @property
    def world_size(self) -> int:
        return self._stage_size * self.pipeline

    @property
    def _stage_size(self) -> int:
        return self.tensor * self.context * self.data

    @property
    def _expert_tensor(self) -> int:
        return self.tensor if self.expert_tensor is None else self.expert_tensor

    def position(self, rank: int) -> GridPosition:
        """Axes of a global rank; ValueError outside the grid."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside the grid of {self.world_size} ranks")
        return GridPosition(**{**_coordinates(self.sizes, EXPERT_AXES, rank), **_coordinates(self.sizes, AXES, rank)})

    def rank(self, *, tensor: int = 0, context: int = 0, data: int = 0, pipeline: int = 0) -> int:
        return tensor + self.tensor * (context + self.context * (data + self.data * pipeline))

    def groups(self, *axes: str) -> list[list[int]]:
        """The ranks that differ on these axes only, group by group: those with all others equal.

        The axes are of `AXES` or of `EXPERT_AXES`, ValueError otherwise. Groups are in order of their first rank, the
        ranks of each ascending.
        """
        order = next((names for names in (AXES, EXPERT_AXES) if set(axes) <= set(names)), None)
        if order is None:
            raise ValueError(f"expected axes all of {AXES} or all of {EXPERT_AXES}, found {axes}")
        others = [name for name in order if name not in axes]
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            at = _coordinates(self.sizes, order, rank)
            groups.setdefault(tuple(at[name] for name in others), []).append(rank)
        return list(groups.values())

    def data_group(self, data: int) -> list[int]:
        """Ranks that hold replica `data` of the model, in rank order."""
        return [rank for rank in range(self.world_size) if self.position(rank).data == data]

    def reporter(self, data: int) -> int:
        """The rank of replica `data` that has the loss: last pipeline stage, first tensor rank."""
        return self.rank(data=data, pipeline=self.pipeline - 1)


def _coordinates(sizes: Mapping[str, int], order: Sequence[str], rank: int) -> dict[str, int]:
    """The rank's digits in the mixed base of the axes' sizes, the fastest first."""
    at = {}
    for name in order:
        rank, at[name] = divmod(rank, sizes[name])
    return at
