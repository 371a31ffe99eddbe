"""torch's AdamW in one kernel: the same update, and nothing as large as the moments beside them."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megarl.policy.moments import Moments
from megarl.policy.optimizer import forget_moments, fuse

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


def stepped(*, fused: bool, updates: int = 3) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,))]
    groups = [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.0}]
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW(groups, **SETTINGS))
    if fused:
        fuse(optimizer)  # type: ignore[arg-type]
    for _ in range(updates):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.optimizer.step()
    return [weight.detach() for weight in weights], optimizer


def test_the_update_is_the_same() -> None:
    for plain, fused in zip(stepped(fused=False)[0], stepped(fused=True)[0], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)


def test_it_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    module = sys.modules["torch.optim.adam"]  # AdamW's too
    for name in ("_fused_adam", "_multi_tensor_adam", "_single_tensor_adam"):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: calls.append(name))
    stepped(fused=True, updates=1)
    assert set(calls) == {"_fused_adam"}
    stepped(fused=False, updates=1)
    assert len(set(calls)) == 2, "which is not torch's own choice here"


def test_its_counts_can_be_read_set_and_forgotten() -> None:
    _, optimizer = stepped(fused=True)
    inner = optimizer.optimizer
    (main, _) = (group["params"][0] for group in inner.param_groups)
    moments = Moments(inner, main)
    assert moments.step == 3
    moments.step = 8
    assert moments.step == 8
    forget_moments(optimizer)
    assert moments.step == 0
    assert not moments["exp_avg"].any()
