"""The Triton kernels' arithmetic in Triton's interpreter, on CPU tensors, against the float64 reference.

Run by test_triton.py in a process of its own with TRITON_INTERPRET=1, which must be set before Triton is imported.
Where the interpreter of Triton 3.9 differs from a GPU:
* It keeps bfloat16 as 16-bit integers, and `tl.dot` multiplies those: a product of bfloat16 tiles is wrong. The fused
  kernels run with float16 instead, which takes the same path and the same tiles.
* float32 to bfloat16 cuts digits off instead of rounding, so bfloat16 gradients are compared to 7 bits, not 8.
"""

import os

import pytest
import torch

from megarl.parallel import fused_linear, fused_linear_triton, vocab, vocab_triton
from tests.parallel.reference import (
    linear_case,
    logits_case,
    reference_distribution,
    reference_gradient,
    reference_linear_gradients,
    upstream_weights,
)

PER_TOKEN = torch.linspace(0.5, 2.0, 11)
assert os.environ.get("TRITON_INTERPRET") == "1", "these tests are run by test_triton.py"


@pytest.fixture(autouse=True)
def _kernels(monkeypatch) -> None:
    """Triton's kernels for CPU tensors, with blocks so small that each case has several and a partial one."""
    monkeypatch.setattr(vocab, "vocab_kernels", lambda _device: vocab_triton)
    monkeypatch.setattr(fused_linear, "fused_linear_kernels", lambda _device: fused_linear_triton)
    monkeypatch.setattr(vocab_triton, "BLOCK_COLUMNS", 32)
    monkeypatch.setattr(fused_linear_triton, "STRETCH_COLUMNS", 128)
    monkeypatch.setattr(fused_linear_triton, "GRADIENT_BUFFER_BYTES", 128 * 11 * 2)


def _core(logits, target, weights, **options):
    leaf = logits.detach().clone().requires_grad_()
    logp, entropy, expected_q = vocab.vocab_parallel_logp_entropy(
        leaf.clone(), target, with_expected_q=True, vocab_start=0, **options
    )
    (weights[0] * logp + weights[1] * entropy).sum().backward()
    return (logp.detach(), entropy.detach(), expected_q), leaf.grad


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("temperature", [0.6, PER_TOKEN])
@pytest.mark.parametrize(
    ("dtype", "exact", "rounding"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 3e-6, 1e-6), (torch.bfloat16, 3e-6, 2**-7)],
)
def test_core_matches_reference(dtype, exact, rounding, temperature, inplace) -> None:
    """133 valid columns of 137; -inf logits, and a row whose first block holds nothing finite."""
    logits, target = logits_case(columns=137)
    logits[2, :40], logits[3, ::2], logits[4] = -torch.inf, -torch.inf, 7.0
    target = target.clamp(max=132)
    target[2], target[3] = 100, 7
    logits = logits.to(dtype)
    padded = logits.clone()
    padded[:, 133:] = torch.nan
    weights = upstream_weights(11)
    values, gradient = _core(padded, target, weights, vocab_stop=133, temperature=temperature, inplace_backward=inplace)
    assert gradient.dtype == dtype
    for value, reference in zip(values, reference_distribution(logits[:, :133], target, temperature), strict=True):
        torch.testing.assert_close(value.double(), reference, atol=exact, rtol=exact)
    reference = reference_gradient(logits[:, :133], target, weights, temperature)
    torch.testing.assert_close(gradient[:, :133].double(), reference, atol=1e-6, rtol=rounding)
    assert (gradient[:, 133:] == 0).all()


@pytest.mark.parametrize("used", [0, 1])
def test_core_one_output_alone(used: int) -> None:
    logits, target = logits_case()
    weights = torch.zeros(2, 11)
    weights[used] = 1.0
    leaf = logits.requires_grad_()
    vocab.vocab_parallel_logp_entropy(leaf * 1.0, target, vocab_start=0, vocab_stop=37)[used].sum().backward()
    torch.testing.assert_close(leaf.grad, reference_gradient(logits, target, weights), atol=1e-12, rtol=1e-12)


def test_core_extreme_logits_nan_and_foreign_targets() -> None:
    logits, target = logits_case(columns=70, spread=1e4)
    logits, weights = logits.float(), upstream_weights(11)
    target[5], target[6] = 70, -1
    logits[7, 60] = torch.nan
    (logp, entropy, expected_q), gradient = _core(logits, target, weights, vocab_stop=70)
    held = torch.tensor([0, 1, 2, 3, 4, 8, 9, 10])
    for value, reference in zip(
        (logp, entropy, expected_q), reference_distribution(logits[held], target[held]), strict=True
    ):
        torch.testing.assert_close(value[held].double(), reference, atol=3e-6, rtol=3e-6)
    assert logp[5:7].tolist() == [-torch.inf, -torch.inf]
    assert [bool(output[7].isnan()) for output in (logp, entropy, expected_q)] == [True, True, True]
    assert (logp[held] <= 0).all()
    assert (entropy[held] >= 0).all()
    assert torch.isfinite(gradient[held]).all()


def test_core_without_tokens_or_columns() -> None:
    logits, target = logits_case()
    values, gradient = _core(logits[:0], target[:0], upstream_weights(0), vocab_stop=37)
    assert [*(value.shape for value in values), gradient.shape] == [(0,), (0,), (0,), (0, 37)]
    empty_TK = vocab_triton.shard_statistics(logits[:, :0], target * 0 - 1, scale=1.0, with_expected_q=True)
    assert empty_TK[0].tolist() == [-torch.inf, 0.0, 0.0, -torch.inf, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.6, PER_TOKEN])
@pytest.mark.parametrize(("dtype", "exact", "rounding"), [(torch.float32, 6e-6, 3e-6), (torch.float16, 6e-6, 2e-3)])
def test_fused_matches_reference(dtype, exact, rounding, temperature) -> None:
    """300 columns: three stretches of 128, several blocks of gradient, partial tiles in all three dimensions."""
    hidden, weight, target = linear_case(columns=300, hidden_size=72, dtype=torch.float64)
    hidden, weight = hidden.to(dtype), (weight * 0.5).to(dtype)
    padded = torch.cat((weight, torch.full((4, 72), torch.nan, dtype=dtype))).requires_grad_()
    leaf, weights = hidden.clone().requires_grad_(), upstream_weights(11)
    outputs = fused_linear.fused_linear_logp_entropy(
        leaf, padded, target, vocab_start=0, vocab_stop=300, temperature=temperature, with_expected_q=True
    )
    (weights[0] * outputs.logp_T + weights[1] * outputs.entropy_T).sum().backward()
    expected = reference_distribution(hidden.double() @ weight.double().t(), target, temperature)
    for value, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(value.detach().double(), reference, atol=exact, rtol=exact)
    references = reference_linear_gradients(hidden, weight, target, weights, temperature)
    for gradient, reference in zip((leaf.grad, padded.grad[:300]), references, strict=True):
        assert gradient.dtype == dtype
        atol = rounding * float(reference.abs().max())
        torch.testing.assert_close(gradient.double(), reference, atol=atol, rtol=rounding)
    assert (padded.grad[300:] == 0).all()


def test_fused_without_expected_q_and_transposed_operands() -> None:
    hidden, weight, target = linear_case(columns=150, dtype=torch.float32)
    strided = (hidden.t().contiguous().t(), weight.t().contiguous().t())
    plain = fused_linear.fused_linear_logp_entropy(hidden, weight, target, vocab_start=0, vocab_stop=150)
    other = fused_linear.fused_linear_logp_entropy(*strided, target, vocab_start=0, vocab_stop=150)
    assert plain.expected_q_T is None
    assert torch.equal(plain.logp_T, other.logp_T)
    assert torch.equal(plain.entropy_T, other.entropy_T)


def test_fused_refuses_float64() -> None:
    hidden, weight, target = linear_case(dtype=torch.float64)
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        fused_linear.fused_linear_logp_entropy(hidden, weight, target, vocab_start=0, vocab_stop=37)


def test_interpreter_still_cannot_multiply_bfloat16() -> None:
    """If this fails, the interpreter has learned it: give the fused kernels bfloat16 above and delete this test."""
    hidden, weight, target = linear_case(dtype=torch.bfloat16)
    outputs = fused_linear.fused_linear_logp_entropy(hidden, weight, target, vocab_start=0, vocab_stop=37)
    reference = reference_distribution(hidden.double() @ weight.double().t(), target)[0]
    assert not torch.allclose(outputs.logp_T.double(), reference, atol=1e-2)
