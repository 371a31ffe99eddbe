"""The inner optimizer's state of one tensor that it updates: both moments, and its count of updates.

torch's AdamW makes them in a tensor's first update and counts by tensor; fused implementations on a GPU count by
parameter group. Either way they are here from the first look on, as the first update would make them.
"""

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


class Moments:
    """Of the tensor `main`. Everything read or set here is the optimizer's own."""

    def __init__(self, optimizer: torch.optim.Optimizer, main: Tensor) -> None:
        """Raises RuntimeError where the optimizer remembers something of the tensor that nobody would save."""
        self._state: dict[str, Any] = optimizer.state[main]
        self._group = next(group for group in optimizer.param_groups if any(main is one for one in group["params"]))
        self._counts_by_tensor = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        if unknown := self._state.keys() - {*MOMENTS, _STEP}:
            raise RuntimeError(
                f"{type(optimizer).__name__} keeps {sorted(unknown)} of a parameter, which no checkpoint holds"
            )
        for name in MOMENTS:
            if name not in self._state:
                self._state[name] = torch.zeros_like(main.data, dtype=torch.float32)
        if self._counts_by_tensor and _STEP not in self._state:
            on_device = self._group.get("capturable") or self._group.get("fused")
            self._state[_STEP] = torch.tensor(0.0, device=main.device if on_device else "cpu")

    def __getitem__(self, name: str) -> Tensor:
        """One of `MOMENTS`, in the shape of the tensor."""
        moment: Tensor = self._state[name]
        return moment

    @property
    def step(self) -> int:
        """Updates since the moments were last forgotten."""
        return int(self._state[_STEP] if self._counts_by_tensor else self._group.get(_STEP, 0))

    @step.setter
    def step(self, value: int) -> None:
        where = self._state if self._counts_by_tensor else self._group
        if isinstance(held := where.get(_STEP), Tensor):
            held.fill_(value)
        else:
            where[_STEP] = value
