"""Products of bfloat16 where the CPU has none: values and gradients are exact ones, rounded once."""

import pytest
import torch
import torch.nn.functional as F

from megarl.parallel import linear as module
from megarl.parallel.linear import linear


@pytest.mark.parametrize("rows", [(7,), (3, 1)], ids=str)
def test_widened_products_are_rounded_once(rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
    torch.manual_seed(0)
    grad = torch.randn(*rows, 5).bfloat16()
    left, weight = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((*rows, 300), (5, 300)))
    product = linear(left, weight)
    got = [product, *torch.autograd.grad(product, (left, weight), grad)]
    exact_grad, exact_left = grad.double().flatten(0, -2), left.double().flatten(0, -2)
    want = [left.double() @ weight.double().T, grad.double() @ weight.double(), exact_grad.T @ exact_left]
    for value, true in zip(got, want, strict=True):
        assert value.dtype == torch.bfloat16
        assert value.shape == true.shape
        assert ((value.double() - true).abs() <= 2**-8 * true.abs() + 1e-4).all()


def test_a_frozen_weight_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
    left, weight = torch.ones(2, 3).bfloat16().requires_grad_(), torch.ones(4, 3).bfloat16()
    linear(left, weight).sum().backward()
    assert left.grad.tolist() == [[4.0] * 3] * 2
    assert weight.grad is None


@pytest.mark.parametrize(("dtype", "kernels"), [(torch.float32, False), (torch.bfloat16, True)], ids=str)
def test_other_products_are_torchs_own(dtype: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: kernels)
    left, weight = torch.randn(7, 30).to(dtype), torch.randn(5, 30).to(dtype)
    assert torch.equal(linear(left, weight), F.linear(left, weight))
