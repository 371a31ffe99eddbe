"""A checkpoint into a rank's state, whatever layout, layer spec, dtype or optimizer wrote it.

Every piece that the rank holds is read where it lies in the global space. Nothing is changed before all of the keys are
known to be there in the right shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megarl.checkpoint.dist_reader import DistCheckpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.staging import StatePiece
from megarl.policy.moments import MOMENTS
from megarl.policy.state import MAIN, RankState, optimizer_key

_SHOWN_FAULTS = 8


@dataclass(frozen=True, slots=True)
class _Fill:
    """Memory of the rank, and the tensor of the checkpoint to fill it from."""

    piece: StatePiece
    key: str


def load_state(state: RankState, checkpoint: DistCheckpoint, *, step: int) -> None:
    """Become what the checkpoint says; step: the optimizer's own count of updates.

    Raises CheckpointError, naming the tensors, where it is not of this model or lacks something that the rank needs
    (nothing was changed), or where a file is damaged.
    """
    fills = [*_weights(state, checkpoint), *_reference(state), *_optimizer(state, checkpoint, moments=True)]
    _check(fills, checkpoint)
    _forget_moments(state, step=step)
    _fill_all(fills, checkpoint)


def load_weights(state: RankState, checkpoint: DistCheckpoint) -> None:
    """Only the weights: those of the reference too, with an optimizer that begins. Raises as `load_state`."""
    fills = [*_weights(state, checkpoint), *_optimizer(state, checkpoint, moments=False)]
    _check(fills, checkpoint)
    _forget_moments(state, step=0)
    _fill_all(fills, checkpoint)
    for name, tensor in (state.reference or {}).items():
        tensor.copy_(state.weights[name])


def _weights(state: RankState, checkpoint: DistCheckpoint) -> Iterator[_Fill]:
    """Weights of another dtype than was trained in come from the float32 ones, where the checkpoint has such."""
    for name in state.weights:
        for piece in state.weight_pieces(name):
            stored, main = checkpoint.tensors.get(piece.key), optimizer_key(MAIN, piece.key)
            other = stored is not None and stored.dtype != piece.tensor.dtype
            yield _Fill(piece, main if other and main in checkpoint.tensors else piece.key)


def _reference(state: RankState) -> Iterator[_Fill]:
    for name in state.reference or {}:
        yield from (_Fill(piece, piece.key) for piece in state.reference_pieces(name))


def _optimizer(state: RankState, checkpoint: DistCheckpoint, *, moments: bool) -> Iterator[_Fill]:
    for name, share in state.shares().items():
        for piece in state.main_pieces(name, share) if share.is_copy else ():
            # A float32 model is its own main weights.
            weight = piece.key.removeprefix(optimizer_key(MAIN, ""))
            yield _Fill(piece, piece.key if piece.key in checkpoint.tensors else weight)
        for piece in state.moment_pieces(name, share) if moments else ():
            yield _Fill(piece, piece.key)


def _check(fills: list[_Fill], checkpoint: DistCheckpoint) -> None:
    expected = {fill.key: fill.piece.shape for fill in fills}
    faults = []
    for key, shape in expected.items():
        stored = checkpoint.tensors.get(key)
        if stored is None:
            faults.append(f"{key}: expected {list(shape)}, found none")
        elif stored.shape != shape:
            faults.append(f"{key}: expected {list(shape)}, found {list(stored.shape)}")
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise CheckpointError(
            f"{checkpoint.directory} does not hold what this run needs: {'; '.join(faults[:_SHOWN_FAULTS])}{more}. Is "
            "it of this model, and of a run with a reference where this one has a KL?"
        )


def _forget_moments(state: RankState, *, step: int) -> None:
    """Also where no piece lies: the padding of the vocabulary has none."""
    for share in state.shares().values():
        for moment in MOMENTS:
            share.moments[moment].zero_()
        share.moments.step = step


def _fill_all(fills: list[_Fill], checkpoint: DistCheckpoint) -> None:
    for fill in fills:
        _fill(fill.piece.tensor, checkpoint, fill.key, fill.piece.offsets)


def _fill(tensor: Tensor, checkpoint: DistCheckpoint, key: str, offsets: tuple[int, ...]) -> None:
    direct = tensor.device.type == "cpu" and tensor.dtype == checkpoint.tensors[key].dtype
    read = checkpoint.read(key, offsets, tuple(tensor.shape), out=tensor if direct else None)
    if not direct:
        tensor.copy_(read)
