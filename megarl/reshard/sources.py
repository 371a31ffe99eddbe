"""Which boxes policy ranks send from, and which ranks hold them: the weight table of a position on the grid.

Invariant: over all holdings the placed boxes cover every element of every checkpoint tensor exactly once. What all
tensor ranks hold whole (norms) comes from one of them, in turn by tensor; an embedding that the last stage repeats
comes from the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megarl.models.layout import RankLayout, layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import Spec, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.blocks import Holders, Holding
from megarl.reshard.regions import Placed, place_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLayout:
    """A model on a rank grid."""

    shape: ModelShape
    grid: RankGrid
    virtual: int = 1
    """Virtual-pipeline chunks per stage."""
    spec: Spec = "local"

    def holdings(self) -> Iterator[Holding]:
        """Of all ranks, one after the other: each is worked out when it is asked for."""
        for pipeline in range(self.grid.pipeline):
            for tensor in range(self.grid.tensor):
                yield self.holding(pipeline=pipeline, tensor=tensor)

    def held_by(self, rank: int) -> tuple[Holding, ...]:
        """Those of `holdings` that the rank is a holder of."""
        position = self.grid.position(rank)
        return (self.holding(pipeline=position.pipeline, tensor=position.tensor),)

    def holding(self, *, pipeline: int, tensor: int) -> Holding:
        """What the ranks of this position send from. Held by one rank of every data-parallel replica.

        Raises:
            ModelError: the model does not split this way.
        """
        layout = layout_of(
            self.shape,
            tensor_rank=tensor,
            tensor_size=self.grid.tensor,
            pipeline_rank=pipeline,
            pipeline_size=self.grid.pipeline,
            virtual=self.virtual,
        )
        first = self.grid.rank(pipeline=pipeline, tensor=tensor)
        step = self.grid.rank(pipeline=pipeline, tensor=tensor, data=1) - first
        return Holding(Holders(first, step, self.grid.data), self._placed(layout, tensor))

    def _placed(self, layout: RankLayout, tensor: int) -> tuple[Placed, ...]:
        entries = [entry for entry in list_parameters(self.shape, layout, spec=self.spec) if not entry.tied]
        return tuple(
            placed
            for index, entry in enumerate(entries)
            if entry.split_dim is not None or index % self.grid.tensor == tensor
            for placed in place_pieces(entry)
        )
