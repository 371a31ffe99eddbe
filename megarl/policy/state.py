"""What a policy rank has to remember from one step to the next, as pieces of the checkpoint's global space.

    <key>                               the weights, in the model's dtype
    reference.<key>                     the reference's; only where there is one
    optimizer.state.exp_avg.<key>       the mean of gradients, and exp_avg_sq of their squares, float32
    optimizer.state.fp32_param.<key>    the float32 weights that are updated, where the model's are not these

Keys and places are those of `models.global_space`, in which nothing of a layout is left: any rank of any layout finds
there what it holds. Beside the tensors there are two numbers: the updates that were made (the place in the learning
rate's schedule) and the optimizer's own count since its moments were last forgotten. Pieces are views of the rank's own
memory, not copies.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor, nn

from megarl.checkpoint.staging import StatePiece
from megarl.config.cluster import Moved
from megarl.models.global_space import flat_pieces, global_tensors, rank_pieces
from megarl.models.layout import RankLayout
from megarl.models.shape import ModelShape
from megarl.models.table import Spec
from megarl.policy.moments import MOMENTS, Moments
from megarl.policy.optimizer import optimizer_parts
from megarl.policy.weights import named_parameters, shared_parameters
from megarl.reshard.regions import parameter_key

MAIN = "fp32_param"


def reference_key(key: str) -> str:
    """Of the reference's weight that has `key` in the model."""
    return f"reference.{key}"


def optimizer_key(name: str, key: str) -> str:
    """name: of `MOMENTS`, or `MAIN`."""
    return f"optimizer.state.{name}.{key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlace:
    """Which of the ranks that hold the same part of the model this one is."""

    rank: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Share:
    """The elements of a parameter that this rank's optimizer updates: all, or a data rank's part of them."""

    start: int
    """The first one's place in the flattened parameter."""
    main: Tensor
    """float32, what is updated."""
    is_copy: bool
    """Beside the model's weights, which are in bfloat16; else a part of them."""
    moments: Moments


class RankState:
    """The state of one rank, in place: read its pieces, or fill them."""

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        reference: Sequence[nn.Module] | None,
        optimizer: MegatronOptimizer,
        *,
        shape: ModelShape,
        layout: RankLayout,
        spec: Spec,
        data: DataPlace,
        present: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """present: where a tensor's values are to be read, if not in its own memory (`Offload.present`)."""
        self._present = present
        self._names = {parameter: name for name, parameter in named_parameters(chunks).items()}
        self.weights = shared_parameters(chunks)
        self.reference = None if reference is None else shared_parameters(reference)
        self._optimizer = optimizer
        self._shapes = {key: tensor.shape for key, tensor in global_tensors(shape).items()}
        self._placed = {
            parameter_key(chunk, name): placed
            for (chunk, name), placed in rank_pieces(shape, layout, spec=spec).items()
        }
        self._data = data
        sizes = {name: tensor.nbytes for name, tensor in self.weights.items() if not self._placed[name].is_replica}
        self._writers = deal(sizes, ranks=data.ranks)

    def saved(self) -> list[StatePiece]:
        """What this rank saves. Over all ranks of a policy every element comes once."""
        mine = {name for name, rank in self._writers.items() if rank == self._data.rank}
        pieces = [piece for name in mine for piece in self.weight_pieces(name)]
        if self.reference is not None:
            pieces += [piece for name in mine for piece in self.reference_pieces(name)]
        for name, share in self.shares().items():
            if name in self._writers and (name in mine or self._is_split):
                pieces += self.share_pieces(name, share)
        return sorted(pieces, key=lambda piece: (piece.key, piece.offsets))

    def held(self) -> Iterator[StatePiece]:
        """Everything that this rank holds, what others hold too included."""
        for name in self.weights:
            yield from self.weight_pieces(name)
            yield from self.reference_pieces(name) if self.reference is not None else ()
        for name, share in self.shares().items():
            yield from self.share_pieces(name, share)

    @property
    def _is_split(self) -> bool:
        """Whether each data rank has another share."""
        return any(isinstance(part, DistributedOptimizer) for part in optimizer_parts(self._optimizer))

    def weight_pieces(self, name: str) -> Iterator[StatePiece]:
        """Of the parameter `name`, a key of the transfer plans."""
        for piece in self._placed[name].pieces:
            view = self.weights[name][piece.local].view(piece.sizes)
            yield StatePiece(piece.key, self._shapes[piece.key], piece.offsets, view)

    def reference_pieces(self, name: str) -> Iterator[StatePiece]:
        """Likewise of the reference, which there must be."""
        assert self.reference is not None
        reference = self._present(self.reference[name])
        for piece in self._placed[name].pieces:
            view = reference[piece.local].view(piece.sizes)
            yield StatePiece(reference_key(piece.key), self._shapes[piece.key], piece.offsets, view)

    def share_pieces(self, name: str, share: Share) -> Iterator[StatePiece]:
        """The optimizer's of the parameter: the float32 copy where there is one, and both moments."""
        if share.is_copy:
            yield from self.main_pieces(name, share)
        yield from self.moment_pieces(name, share)

    def main_pieces(self, name: str, share: Share) -> Iterator[StatePiece]:
        """The weights that are updated."""
        return self._flat(name, share, share.main.data, MAIN)

    def moment_pieces(self, name: str, share: Share) -> Iterator[StatePiece]:
        """Both moments."""
        for moment in MOMENTS:
            yield from self._flat(name, share, share.moments[moment], moment)

    def _flat(self, name: str, share: Share, tensor: Tensor, what: str) -> Iterator[StatePiece]:
        placed, flat = self._placed[name], self._present(tensor).view(-1)
        for piece in placed.pieces:
            for part in flat_pieces(piece, placed.entry.shape, start=share.start, size=flat.numel()):
                view = flat[part.start : part.start + part.num_elements].view(part.sizes)
                yield StatePiece(optimizer_key(what, part.key), self._shapes[part.key], part.offsets, view)

    @property
    def optimizer_step(self) -> int | None:
        """The optimizer's own count of updates; None where this rank has no share of any parameter."""
        steps = {share.moments.step for share in self.shares().values()}
        if len(steps) > 1:
            raise RuntimeError(f"the optimizer has made {sorted(steps)} updates of its parameters; expected one number")
        return next(iter(steps), None)

    def shares(self) -> dict[str, Share]:
        """By parameter; moments that the optimizer has not made yet are made, as its first update would."""
        storages = {tensor.untyped_storage().data_ptr() for tensor in self.weights.values()}
        return {
            self._names[parameter]: Share(
                start=start,
                main=main,
                is_copy=main.untyped_storage().data_ptr() not in storages,
                moments=Moments(part.optimizer, main),
            )
            for part in optimizer_parts(self._optimizer)
            for parameter, main, start in _updated(part)
        }


def moved_tensors(state: RankState, moved: Collection[Moved]) -> dict[str, list[Tensor]]:
    """What of a rank's state goes by these names; moments that the optimizer has not made yet are made."""
    tensors: dict[str, list[Tensor]] = {}
    if "optimizer" in moved:
        shares = state.shares().values()
        tensors["optimizer"] = [share.main.data for share in shares if share.is_copy]
        tensors["optimizer"] += [share.moments[name] for share in shares for name in MOMENTS]
    if "reference" in moved:
        tensors["reference"] = list((state.reference or {}).values())
    return tensors


def deal(sizes: Mapping[str, int], *, ranks: int) -> dict[str, int]:
    """Which of `ranks` writes each, so that all write about as much; the same on every rank that is asked."""
    loads, writers = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        writers[name] = loads.index(min(loads))
        loads[writers[name]] += sizes[name]
    return writers


def _updated(part: MegatronOptimizer) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
    """(parameter, what the inner optimizer updates for it, the place of its first element in the parameter)."""
    groups: Iterable[tuple[Sequence[nn.Parameter], Sequence[Tensor]]]
    if isinstance(part, DistributedOptimizer):
        groups = [
            *zip(part.model_float16_groups, part.shard_fp32_from_float16_groups, strict=True),
            *zip(part.model_fp32_groups, part.shard_fp32_groups, strict=True),
        ]
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        groups = [
            *zip(part.float16_groups, part.fp32_from_float16_groups, strict=True),
            *((group, group) for group in part.fp32_from_fp32_groups),
        ]
    else:
        groups = [(group["params"], group["params"]) for group in part.param_groups]
    for parameters, mains in groups:
        for parameter, main in zip(parameters, mains, strict=True):
            whole = not isinstance(part, DistributedOptimizer)
            yield parameter, main, 0 if whole else part._get_model_param_range_map(parameter)["param"].start
