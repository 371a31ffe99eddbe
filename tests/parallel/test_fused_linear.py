"""The fused linear log-prob against the float64 reference, on one rank; test_vocab_ranks.py has the others."""

import math

import pytest
import torch
from torch import Tensor

from megarl.parallel import fused_linear_blocked
from megarl.parallel.fused_linear import fused_linear_logp_entropy
from tests.parallel.reference import linear_case, reference_distribution, reference_linear_gradients, upstream_weights

VOCAB = 37


def _run(hidden: Tensor, weight: Tensor, target: Tensor, weights: Tensor, **options) -> tuple[Tensor, ...]:
    """logp, entropy, expected q, gradient of the hidden states, gradient of the weight."""
    leaves = (hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_())
    logp, entropy, expected_q = fused_linear_logp_entropy(*leaves, target, with_expected_q=True, **options)
    (weights[0] * logp + weights[1] * entropy).sum().backward()
    return logp.detach(), entropy.detach(), expected_q, leaves[0].grad, leaves[1].grad


def _whole(columns: int) -> dict[str, int]:
    return {"vocab_start": 0, "vocab_stop": columns}


def test_hand_computed_numbers() -> None:
    # Logits log(.7, .15, .15) + 5 from hidden state (1, 5): the second weight column is 1.
    hidden = torch.tensor([[1.0, 5.0]])
    weight = torch.stack((torch.tensor([0.7, 0.15, 0.15]).log(), torch.ones(3)), dim=1)
    result = fused_linear_logp_entropy(hidden, weight, torch.tensor([1]), with_expected_q=True, **_whole(3))
    assert result.logp_T.item() == pytest.approx(math.log(0.15), abs=1e-6)
    assert result.entropy_T.item() == pytest.approx(0.818808, abs=1e-6)
    assert result.expected_q_T.item() == pytest.approx(0.177921, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6, "per token"])
@pytest.mark.parametrize(
    ("dtype", "exact", "rounding"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 6e-6, 3e-6), (torch.bfloat16, 6e-6, 4e-3)],
)
@pytest.mark.parametrize("block_columns", [5, 1024])
def test_matches_reference(monkeypatch, dtype, exact, rounding, temperature, block_columns) -> None:
    """With blocks of 5 columns and 3 tokens, too: statistics merge over blocks, gradients sum over them."""
    if block_columns == 5:
        monkeypatch.setattr(fused_linear_blocked, "MAX_BLOCK_COLUMNS", 5)
        monkeypatch.setattr(fused_linear_blocked, "BLOCK_BYTES", 5 * 3 * (8 if dtype == torch.float64 else 4))
    hidden, weight, target = linear_case(dtype=dtype)
    if temperature == "per token":
        temperature = torch.linspace(0.5, 2.0, len(target))
    weights = upstream_weights(len(target))
    actual = _run(hidden, weight, target, weights, temperature=temperature, **_whole(VOCAB))
    expected = reference_distribution(hidden.double() @ weight.double().t(), target, temperature)
    gradients = reference_linear_gradients(hidden, weight, target, weights, temperature)
    assert [output.dtype for output in actual[3:]] == [dtype, dtype]
    for value, reference in zip(actual[:3], expected, strict=True):
        torch.testing.assert_close(value.double(), reference, atol=exact, rtol=exact)
    for value, reference in zip(actual[3:], gradients, strict=True):
        # Sums over 37 columns or 11 tokens in float32, then one rounding to the operands' dtype.
        torch.testing.assert_close(value.double(), reference, atol=rounding * reference.abs().max(), rtol=rounding)


def test_agrees_with_the_core_on_the_same_logits() -> None:
    from megarl.parallel.vocab import vocab_parallel_logp_entropy

    hidden, weight, target = linear_case(dtype=torch.float32)
    fused = fused_linear_logp_entropy(hidden, weight, target, with_expected_q=True, **_whole(VOCAB))
    core = vocab_parallel_logp_entropy(hidden @ weight.t(), target, with_expected_q=True, **_whole(VOCAB))
    for one, other in zip(fused, core, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=5e-6)


def test_gradcheck() -> None:
    hidden, weight, target = linear_case(tokens=4, columns=6, hidden_size=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: fused_linear_logp_entropy(h, w, target, temperature=0.7, vocab_start=0, vocab_stop=6)[:2],
        (hidden.requires_grad_(), weight.requires_grad_()),
    )


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_gradients_that_are_asked_for(monkeypatch, wanted: tuple[bool, bool]) -> None:
    hidden, weight, target = linear_case(dtype=torch.float64)
    expected = reference_linear_gradients(hidden, weight, target, torch.ones(2, len(target)))
    asked = []
    real = fused_linear_blocked.write_gradients
    monkeypatch.setattr(
        fused_linear_blocked,
        "write_gradients",
        lambda h, w, *args, **options: (asked.append((h is not None, w is not None)), real(h, w, *args, **options)),
    )
    hidden.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    logp, entropy, _ = fused_linear_logp_entropy(hidden, weight, target, **_whole(VOCAB))
    (logp + entropy).sum().backward()
    assert asked == [wanted]
    for leaf, reference, is_wanted in zip((hidden, weight), expected, wanted, strict=True):
        assert (leaf.grad is not None) is is_wanted
        if is_wanted:
            torch.testing.assert_close(leaf.grad, reference, atol=1e-12, rtol=1e-12)


def test_tied_embedding_gets_both_gradients() -> None:
    _, weight, target = linear_case(dtype=torch.float64)
    weight.requires_grad_()
    hidden = weight[:11].tanh()
    logp, *_ = fused_linear_logp_entropy(hidden, weight, target, **_whole(VOCAB))
    (gradient,) = torch.autograd.grad(logp.sum(), weight)
    logp, *_ = reference_distribution(weight[:11].tanh() @ weight.t(), target)
    (reference,) = torch.autograd.grad(logp.sum(), weight)
    torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=1e-12)


def test_padding_rows_are_neither_read_nor_given_a_gradient() -> None:
    hidden, weight, target = linear_case(dtype=torch.float32)
    padded = torch.cat((weight, torch.full((5, weight.shape[1]), torch.nan)))
    weights = upstream_weights(len(target))
    plain = _run(hidden, weight, target, weights, **_whole(VOCAB))
    with_padding = _run(hidden, padded, target, weights, **_whole(VOCAB))
    assert all(torch.equal(a, b) for a, b in zip(with_padding[:4], plain[:4], strict=True))
    assert torch.equal(with_padding[4][:VOCAB], plain[4])
    assert torch.equal(with_padding[4][VOCAB:], torch.zeros(5, weight.shape[1]))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_bounds_hold_in_floating_point(spread: float) -> None:
    hidden, weight, target = linear_case(tokens=64, dtype=torch.bfloat16)
    outputs = _run(hidden * spread, weight, target, torch.ones(2, 64), **_whole(VOCAB))
    logp, entropy = outputs[:2]
    assert (logp <= 0).all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(VOCAB) * (1 + 1e-6)).all()
    assert all(torch.isfinite(output).all() for output in outputs)


def test_no_tokens_and_no_columns() -> None:
    hidden, weight, target = linear_case(dtype=torch.bfloat16)
    outputs = _run(hidden[:0], weight, target[:0], torch.ones(2, 0), **_whole(VOCAB))
    assert [output.shape for output in outputs] == [(0,), (0,), (0,), (0, 16), (VOCAB, 16)]
    assert torch.equal(outputs[4], torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_TH": torch.zeros(3, 5)}, "hidden size"),
        ({"hidden_TH": torch.zeros(3, 4, dtype=torch.bfloat16)}, "bfloat16"),
        ({"target_T": torch.zeros(4, dtype=torch.int64)}, "targets"),
        ({"vocab_stop": 9}, "do not fit"),
        ({"temperature": -1.0}, "positive"),
        (
            {"hidden_TH": torch.zeros(3, 4, device="meta"), "weight_VH": torch.zeros(8, 4, device="meta")},
            "cpu and cuda",
        ),
    ],
)
def test_bad_arguments_are_refused(change, message) -> None:
    arguments = {
        "hidden_TH": torch.zeros(3, 4),
        "weight_VH": torch.zeros(8, 4),
        "target_T": torch.zeros(3, dtype=torch.int64),
        "vocab_start": 0,
        "vocab_stop": 8,
    } | change
    tensors = [arguments.pop(name) for name in ("hidden_TH", "weight_VH", "target_T")]
    with pytest.raises(ValueError, match=message):
        fused_linear_logp_entropy(*tensors, **arguments)
