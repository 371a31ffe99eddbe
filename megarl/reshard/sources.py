"""Which boxes a trainer rank sends from: the weight table of its position, every element in one position's hands.

Invariant: over all (pipeline, tensor) positions of a replica the placed boxes cover every element of every checkpoint
tensor exactly once. What all tensor ranks hold whole (norms) comes from one of them, in turn by tensor; an embedding
that the last stage repeats comes from the first.
"""

from dataclasses import dataclass

from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import Spec, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.regions import Placed, place_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerLayout:
    """A model on a rank grid."""

    shape: ModelShape
    grid: RankGrid
    virtual: int = 1
    """Virtual-pipeline chunks per stage."""
    spec: Spec = "local"

    def placed(self, *, pipeline: int, tensor: int) -> tuple[Placed, ...]:
        """What the ranks of this position, one per data-parallel replica, send from.

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
        entries = [entry for entry in list_parameters(self.shape, layout, spec=self.spec) if not entry.tied]
        return tuple(
            placed
            for index, entry in enumerate(entries)
            if entry.split_dim is not None or index % self.grid.tensor == tensor
            for placed in place_pieces(entry)
        )
