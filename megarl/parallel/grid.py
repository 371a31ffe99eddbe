"""The rank grid of the policy: which data, pipeline and tensor position a global rank has.

Megatron-core's default order: tensor ranks are neighbours, then data, then pipeline
(rank = tensor + T * (data + D * pipeline)).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPosition:
    tensor: int
    data: int
    pipeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGrid:
    """Sizes of the axes."""

    tensor: int
    pipeline: int
    data: int

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def position(self, rank: int) -> GridPosition:
        """Axes of a global rank; ValueError outside the grid."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside the grid of {self.world_size} ranks")
        return GridPosition(
            tensor=rank % self.tensor,
            data=rank // self.tensor % self.data,
            pipeline=rank // (self.tensor * self.data),
        )

    def rank(self, *, tensor: int = 0, data: int = 0, pipeline: int = 0) -> int:
        return tensor + self.tensor * (data + self.data * pipeline)

    def data_group(self, data: int) -> list[int]:
        """Ranks that hold replica `data` of the model, in rank order."""
        return [rank for rank in range(self.world_size) if self.position(rank).data == data]

    def reporter(self, data: int) -> int:
        """The rank of replica `data` that has the loss: last pipeline stage, first tensor rank."""
        return self.rank(tensor=0, data=data, pipeline=self.pipeline - 1)
