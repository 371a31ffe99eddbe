"""What a loader asks for, found by running it once over tensors that hold nothing.

A placeholder stands for a whole checkpoint tensor. Views of it are placeholders too and know which of its elements they
are; copying one into a parameter is written down as boxes and their regions, and moves nothing. A loader that does
something else with a tensor (arithmetic, a look at its values, an indexed write) cannot be written down: its
parameter is named, with the reason, and must be filled by the loader itself from whole tensors.

The parameters are watched on the meta device, so a recording changes nothing and needs no memory.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megarl.models.boxes import Box
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.strided import NotBoxesError, split_copy

_aten = torch.ops.aten

WHOLE = "whole tensor "
"""Begins the name of a target that is a checkpoint tensor in full, for the loader to take from."""

Load = Callable[[str, Tensor], None]
"""Runs the loader over one named tensor."""


class InexpressibleError(RuntimeError):
    """A loader did with a placeholder what no slice expresses."""


class Placeholder(torch.Tensor):
    """A tensor without data that knows which elements of which checkpoint tensor it is."""

    checkpoint_name: str
    full_shape: tuple[int, ...]
    elements: Tensor
    """A meta tensor over the storage of the whole tensor, with this view's offset, shape and strides."""
    rounded: bool
    """Converted to a dtype that does not hold all values of the one before."""

    @staticmethod
    def __new__(cls, name: str, full_shape: tuple[int, ...], elements: Tensor, dtype: torch.dtype) -> "Placeholder":
        made: Placeholder = torch.Tensor._make_wrapper_subclass(
            cls, elements.shape, strides=elements.stride(), dtype=dtype, device=torch.device("cpu")
        )
        made.checkpoint_name, made.full_shape, made.elements, made.rounded = name, full_shape, elements, False
        return made

    @classmethod
    def of(cls, name: str, shape: Sequence[int], dtype: torch.dtype) -> "Placeholder":
        """The whole tensor."""
        return cls(name, tuple(shape), torch.empty(tuple(shape), dtype=torch.uint8, device="meta"), dtype)

    def part(self, elements: Tensor) -> "Placeholder":
        """Elements of this one, as a view."""
        made = Placeholder(self.checkpoint_name, self.full_shape, elements, self.dtype)
        made.rounded = self.rounded
        return made

    def converted(self, dtype: torch.dtype | None) -> "Placeholder":
        """The same elements in another dtype."""
        made = Placeholder(self.checkpoint_name, self.full_shape, self.elements, dtype or self.dtype)
        if self.rounded and made.dtype != self.dtype:
            raise InexpressibleError(f"the loader rounds to {self.dtype} and goes on to {made.dtype}")
        made.rounded = self.rounded or torch.promote_types(self.dtype, made.dtype) != made.dtype
        return made

    def tolist(self) -> Any:
        raise InexpressibleError("the loader reads the values of a checkpoint tensor")

    def numpy(self, **_: Any) -> Any:
        raise InexpressibleError("the loader reads the values of a checkpoint tensor")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise InexpressibleError(f"{func} outside a recording")


@dataclass(eq=False)
class _Watched:
    """A parameter under observation."""

    name: str
    first: int
    """Its storage offset."""
    num_elements: int
    loaded: int = 0
    zeroed: int = 0
    tensors: set[str] = field(default_factory=set)
    copies: list[tuple[Box, Region]] = field(default_factory=list)
    trouble: str = ""

    def overlaps(self) -> bool:
        """Does an element belong to two copies? Asked of the elements themselves where their spans do not tell."""
        spans = sorted((region.offset, _last(box, region)) for box, region in self.copies)
        if all(end < start for (_, end), (start, _) in itertools.pairwise(spans)):
            return False
        taken = torch.zeros(max(end for _, end in spans) + 1, dtype=torch.bool)
        for box, region in self.copies:
            view = torch.as_strided(taken, box.shape, region.strides, region.offset)
            if view.any():
                return True
            view.fill_(True)
        return False


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the loader copies where."""

    targets: dict[Box, tuple[Region, ...]]
    """Every wanted box and its places. A tensor that the loader must take from is wanted whole, under a name of its
    own (`WHOLE`)."""
    whole: dict[str, str]
    """Checkpoint tensors for the loader itself -> why."""
    by_loader: frozenset[str]
    """Parameters that the loader fills from them."""
    padded: frozenset[str]
    """Parameters with elements that no tensor fills and the loader sets to zero."""
    short: dict[str, tuple[int, int]]
    """Parameters the tensors do not fill -> (elements filled, elements)."""


class Recorder(TorchDispatchMode):
    """Watches writes to `parameters` while a loader runs over placeholders."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """`parameters`: tensors by name, none sharing memory with another; nothing is written to them."""
        super().__init__()
        self._watched = {
            _storage(parameter): _Watched(name, int(parameter.storage_offset()), parameter.numel())
            for name, parameter in parameters.items()
        }
        self._current: _Watched | None = None
        self._sources: dict[str, tuple[int, ...]] = {}
        self._stray: dict[str, str] = {}
        self._unattributed = False

    def record(self, load: Load, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Run the loader over one tensor; what it does beside slicing is noted. Its own exceptions are raised."""
        self._sources[name] = tuple(shape)
        self._current = None
        try:
            with self:
                load(name, Placeholder.of(name, shape, dtype))
        except (InexpressibleError, NotBoxesError) as error:
            if self._current is not None:
                self._current.trouble = self._current.trouble or str(error)
                self._current.tensors.add(name)
            else:
                self._unattributed = True
            self._stray[name] = f"{self._current.name if self._current else 'a loader'}: {error}"

    @contextmanager
    def loading(self, parameter: Tensor) -> Iterator[None]:
        """Around the call of a parameter's own loader: names the parameter where that loader cannot be followed."""
        self._current = self._watched.get(_storage(parameter))
        yield
        self._current = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = [*args, *kwargs.values()]
        nested = [inner for arg in flat if isinstance(arg, (list, tuple)) for inner in arg]
        placeholders = [arg for arg in (*flat, *nested) if isinstance(arg, Placeholder)]
        if func is _aten.copy_.default and placeholders and isinstance(args[1], Placeholder):
            return self._note_copy(args[0], args[1])
        if placeholders:
            return _derive(func, args, kwargs)
        for target in _written(func, args, kwargs):
            if watched := self._watched.get(_storage(target)):
                self._note_write(watched, func, target, args)
                return target
        return func(*args, **kwargs)

    def _note_copy(self, target: Tensor, source: Placeholder) -> Tensor:
        watched = None if isinstance(target, Placeholder) else self._watched.get(_storage(target))
        if watched is None:
            raise InexpressibleError(f"{source.checkpoint_name} is copied into a tensor that is no parameter")
        if not target.numel():  # a rank that has padding only
            return target
        if source.rounded and source.dtype != target.dtype:
            raise InexpressibleError(f"the loader rounds to {source.dtype} before it copies into {target.dtype}")
        watched.tensors.add(source.checkpoint_name)
        watched.loaded += target.numel()
        where = source.elements.expand(target.shape)
        for box, offset, strides in split_copy(
            source.checkpoint_name,
            source.full_shape,
            shape=target.shape,
            source=(int(where.storage_offset()), where.stride()),
            target=(int(target.storage_offset()), target.stride()),
        ):
            watched.copies.append((box, Region(watched.name, offset - watched.first, strides)))
        return target

    def _note_write(self, watched: _Watched, func: Any, target: Tensor, args: Any) -> None:
        zeroing = func is _aten.zero_.default or (func is _aten.fill_.Scalar and args[1] == 0)
        if zeroing:
            watched.zeroed += target.numel()
        else:
            watched.trouble = watched.trouble or f"its loader also calls {func} on it"

    def finish(self) -> Recording:
        """What was seen. Parameters that share a tensor with a troubled one are left to the loader too."""
        watched = list(self._watched.values())
        for one in watched:
            written = one.loaded + one.zeroed
            if not one.trouble and (written > one.num_elements or one.overlaps()):
                one.trouble = "its loader writes elements more than once"
            elif not one.trouble and written < one.num_elements and self._unattributed:
                one.trouble = "it is filled from a tensor that could not be followed to it"
        whole = self._spread_trouble(watched)
        clean = [one for one in watched if not one.trouble and not one.tensors & whole.keys()]
        targets: dict[Box, tuple[Region, ...]] = {}
        for one in clean:
            for box, region in one.copies:
                targets[box] = (*targets.get(box, ()), region)
        for name in whole:
            shape = self._sources[name]
            box = Box(name, (0,) * len(shape), shape)
            targets[box] = (*targets.get(box, ()), Region(WHOLE + name, 0, contiguous_strides(shape)))
        return Recording(
            targets=targets,
            whole=whole,
            by_loader=frozenset(one.name for one in watched) - {one.name for one in clean},
            padded=frozenset(one.name for one in clean if one.zeroed and one.loaded),
            short={
                one.name: (one.loaded + one.zeroed, one.num_elements)
                for one in clean
                if one.loaded + one.zeroed < one.num_elements
            },
        )

    def _spread_trouble(self, watched: Sequence[_Watched]) -> dict[str, str]:
        """Tensors the loader must take itself: those of troubled parameters, and what is tied to them."""
        whole = dict(self._stray)
        for one in watched:
            if one.trouble:
                whole |= {name: f"{one.name}: {one.trouble}" for name in one.tensors if name not in whole}
        grown = True
        while grown:
            grown = False
            for one in watched:
                if one.tensors & whole.keys() and not one.tensors <= whole.keys():
                    whole |= {name: f"{one.name} shares it" for name in one.tensors if name not in whole}
                    grown = True
        return whole


def _last(box: Box, region: Region) -> int:
    """The region's last element in its parameter."""
    return region.offset + sum((size - 1) * stride for size, stride in zip(box.shape, region.strides, strict=True))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors an operator changes."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    yield tensor


def _derive(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a view, a conversion or a plain copy of a placeholder; InexpressibleError for anything else."""
    source = args[0]
    if not isinstance(source, Placeholder) or any(isinstance(arg, Placeholder) for arg in args[1:]):
        raise InexpressibleError(f"the loader calls {func} on a checkpoint tensor")
    if func is _aten.view.dtype or any(True for _ in _written(func, args, kwargs)):  # also gives a view of all of it
        raise InexpressibleError(f"the loader calls {func} on a checkpoint tensor")
    if func is _aten._to_copy.default:
        return source.converted(kwargs.get("dtype"))
    if func in (_aten.clone.default, _aten.detach.default, _aten.alias.default):
        return source.part(source.elements)
    try:
        result = func(source.elements, *args[1:], **kwargs)
    except (RuntimeError, TypeError) as error:
        raise InexpressibleError(f"the loader calls {func} on a checkpoint tensor: {error}") from None
    parts = result if isinstance(result, (list, tuple)) else [result]
    home = _storage(source.elements)
    if not all(isinstance(part, Tensor) and part.is_meta and _storage(part) == home for part in parts):
        raise InexpressibleError(f"the loader calls {func} on a checkpoint tensor")
    made = [source.part(part) for part in parts]
    return made if isinstance(result, (list, tuple)) else made[0]
