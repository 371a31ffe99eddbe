"""What a policy rank has to remember from one step to the next: weights, moments, reference, place in the schedule.

A state is of one rank under one layout and is plain: tensors, numbers, text, lists and dictionaries, so that what
`torch.save` made of it `torch.load(weights_only=True)` reads. Its tensors are the rank's own memory, not copies.

    format      of this dictionary
    layout      the grid, the rank, the optimizer's kind and whether it is distributed
    updates     how many were made, which is the place in the learning rate's schedule
    weights     by key of the transfer plans, in the model's dtype
    reference   the same of the reference; None where there is none
    optimizer   by the same keys the rank's share of the parameter (see `_Share`), where it has one
    steps       each parameter group's own count of updates, where the optimizer counts by group
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor, nn

from megarl.policy.optimizer import optimizer_parts
from megarl.policy.weights import named_parameters, shared_parameters
from megarl.telemetry.state import check_keys

FORMAT = 1
_SHOWN_FAULTS = 8
_SHARE = ("start", "size", "main", "moments")


@dataclass(frozen=True, slots=True)
class _Share:
    """The elements of a parameter that this rank's optimizer updates: all, or a data rank's part of them."""

    start: int
    """The first one's place in the flattened parameter."""
    main: Tensor
    """float32, what is updated."""
    is_copy: bool
    """Beside the model's weights, which are in bfloat16; else a part of them."""
    moments: dict[str, Any]
    """The inner optimizer's state of `main`: empty before the first update."""

    def state_dict(self) -> dict[str, Any]:
        main = self.main.data if self.is_copy else None
        return {"start": self.start, "size": self.main.numel(), "main": main, "moments": dict(self.moments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.is_copy:
            self.main.data.copy_(state["main"])
        for name in self.moments.keys() - state["moments"].keys():
            del self.moments[name]
        for name, value in state["moments"].items():
            if isinstance(held := self.moments.get(name), Tensor):
                held.copy_(value)
            else:
                self.moments[name] = _own(value, like=self.main)

    def faults(self, state: Mapping[str, Any]) -> Iterator[str]:
        """What of the state's tensors could not be loaded; `_describe` has compared the rest."""
        for name, value in {"main": state["main"], **state["moments"]}.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != self.main.shape:
                yield f"{name}: expected {list(self.main.shape)}, found {list(value.shape)}"


def _own(value: Any, *, like: Tensor) -> Any:
    """A copy, on the device of `like` where it has its shape; a count of steps stays where the optimizer had it."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(like.device if value.shape == like.shape else value.device, copy=True)


class RankState:
    """Reads and writes the state of a rank; `updates` is the rank's own to keep."""

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        reference: Sequence[nn.Module] | None,
        optimizer: MegatronOptimizer,
        *,
        layout: Mapping[str, int | bool],
    ) -> None:
        """layout: what else must be equal where a state is to go on."""
        self._keys = {parameter: key for key, parameter in named_parameters(chunks).items()}
        self._weights = shared_parameters(chunks)
        self._reference = None if reference is None else shared_parameters(reference)
        self._optimizer = optimizer
        kinds = sorted({type(part.optimizer).__name__ for part in optimizer_parts(optimizer)})
        self._layout = {**layout, "optimizer": " and ".join(kinds)}

    def state_dict(self, *, updates: int) -> dict[str, Any]:
        """See the head of this module."""
        return {
            "format": FORMAT,
            "layout": dict(self._layout),
            "updates": updates,
            "weights": dict(self._weights),
            "reference": None if self._reference is None else dict(self._reference),
            "optimizer": {key: share.state_dict() for key, share in self._shares().items()},
            "steps": [group.get("step") for group in self._optimizer.param_groups],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Become `state`; returns its updates. ValueError where it is not of such a rank, and nothing was changed."""
        self._check(state)
        for key, tensor in self._weights.items():
            tensor.copy_(state["weights"][key])
        for key, tensor in (self._reference or {}).items():
            tensor.copy_(state["reference"][key])
        for key, share in self._shares().items():
            share.load_state_dict(state["optimizer"][key])
        for group, step in zip(self._optimizer.param_groups, state["steps"], strict=True):
            if step is not None:
                group["step"] = step.clone() if isinstance(step, Tensor) else step
            else:
                group.pop("step", None)
        return int(state["updates"])

    def _check(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict(updates=0)
        check_keys(state, own, what="policy rank")
        expected, found = _describe(own), _describe(state)
        faults = [
            f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if not faults:
            shares = self._shares().items()
            faults = [f"{key} {fault}" for key, share in shares for fault in share.faults(state["optimizer"][key])]
        if faults:
            more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
            raise ValueError(
                f"the policy rank cannot go on from this state: {'; '.join(faults[:_SHOWN_FAULTS])}{more}. A state is "
                "of one rank, under the model, layout, dtype and optimizer that it was taken under"
            )

    def _shares(self) -> dict[str, _Share]:
        storages = {tensor.untyped_storage().data_ptr() for tensor in self._weights.values()}
        return {
            self._keys[parameter]: _Share(
                start=start,
                main=main,
                is_copy=main.untyped_storage().data_ptr() not in storages,
                moments=part.optimizer.state[main],
            )
            for part in optimizer_parts(self._optimizer)
            for parameter, main, start in _updated(part)
        }


def _updated(part: MegatronOptimizer) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
    """(parameter, what the inner optimizer updates for it, the place of its first element in the parameter)."""
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


def _describe(state: Mapping[str, Any]) -> dict[str, str]:
    """What must agree, by name. Moments are left out: a rank has none before its first update."""
    described = {name: str(value) for name, value in state["layout"].items()}
    described |= {"format": str(state["format"]), "parameter groups": str(len(state["steps"]))}
    for section in ("weights", "reference"):
        for key, tensor in (state[section] or {}).items():
            described[f"{section} {key}"] = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    for key, share in state["optimizer"].items():
        check_keys(share, _SHARE, what=f"optimizer's {key}")
        beside = "" if share["main"] is None else " and their float32 copy"
        described[f"optimizer {key}"] = f"{share['size']} elements from {share['start']}{beside}"
    return described
