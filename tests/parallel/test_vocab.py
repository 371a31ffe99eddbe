"""The vocabulary-parallel core against the float64 reference, on one rank; test_vocab_ranks.py has the others."""

import math

import pytest
import torch
from torch import Tensor

from megarl.parallel import vocab_blocked
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from tests.parallel.reference import (
    logits_case,
    reference_distribution,
    reference_gradient,
    upstream_weights,
)

VOCAB = 37


def _run(logits: Tensor, target: Tensor, weights: Tensor, **options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, expected q and the gradient of sum(weights[0] * logp + weights[1] * entropy)."""
    leaf = logits.detach().clone().requires_grad_()
    logp, entropy, expected_q = vocab_parallel_logp_entropy(leaf.clone(), target, with_expected_q=True, **options)
    (weights[0] * logp + weights[1] * entropy).sum().backward()
    return logp.detach(), entropy.detach(), expected_q, leaf.grad


def _whole(columns: int) -> dict[str, int]:
    return {"vocab_start": 0, "vocab_stop": columns}


def test_hand_computed_numbers() -> None:
    # algorithms golden: p = (.7, .15, .15) has H = .818808; logits are log p plus any constant.
    logits = torch.tensor([[0.7, 0.15, 0.15]]).log() + 5.0
    result = vocab_parallel_logp_entropy(logits, torch.tensor([1]), with_expected_q=True, **_whole(3))
    assert result.logp_T.item() == pytest.approx(math.log(0.15), abs=1e-6)
    assert result.entropy_T.item() == pytest.approx(0.818808, abs=1e-6)
    # N = .49 (ln .7 + H) + 2 * .0225 (ln .15 + H) = .49 * .462133 - .045 * 1.078312
    assert result.expected_q_T.item() == pytest.approx(0.177921, abs=1e-6)


def test_expected_q_only_when_asked_and_without_gradient() -> None:
    logits, target = logits_case()
    leaf = logits.requires_grad_()
    plain = vocab_parallel_logp_entropy(leaf * 1.0, target, **_whole(VOCAB))
    with_q = vocab_parallel_logp_entropy(leaf * 1.0, target, with_expected_q=True, **_whole(VOCAB))
    assert plain.expected_q_T is None
    assert torch.equal(plain.logp_T, with_q.logp_T)
    assert torch.equal(plain.entropy_T, with_q.entropy_T)
    assert with_q.logp_T.requires_grad
    assert with_q.entropy_T.requires_grad
    assert not with_q.expected_q_T.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.6, "per token"])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 3e-6, 1e-6), (torch.bfloat16, 3e-6, 4e-3)],
)
def test_matches_reference(dtype, value_tolerance, gradient_tolerance, inplace, temperature) -> None:
    logits, target = logits_case()
    logits = logits.to(dtype)
    if temperature == "per token":
        temperature = torch.linspace(0.5, 2.0, len(target))
    weights = upstream_weights(len(target))
    expected = reference_distribution(logits, target, temperature)
    actual = _run(logits, target, weights, temperature=temperature, inplace_backward=inplace, **_whole(VOCAB))
    assert actual[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual[3].dtype == dtype
    for value, reference in zip(actual[:3], expected, strict=True):
        torch.testing.assert_close(value.double(), reference, atol=value_tolerance, rtol=value_tolerance)
    # bf16 gradients are rounded once, to 8 bits, from float32.
    gradient = reference_gradient(logits, target, weights, temperature)
    torch.testing.assert_close(actual[3].double(), gradient, atol=1e-6, rtol=gradient_tolerance)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_vocabulary_of_a_real_model(dtype: torch.dtype, rounding: float) -> None:
    """151,936 columns: float32 sums of that many terms, over rows that fill more than one block."""
    logits, target = logits_case(tokens=9, columns=151_936)
    logits = logits.to(dtype)
    weights = upstream_weights(9)
    actual = _run(logits, target, weights, **_whole(151_936))
    for value, reference in zip(actual[:3], reference_distribution(logits, target), strict=True):
        torch.testing.assert_close(value.double(), reference, atol=3e-6, rtol=1e-6)
    gradient = reference_gradient(logits, target, weights)
    torch.testing.assert_close(actual[3].double(), gradient, atol=1e-6, rtol=rounding)


def test_gradcheck() -> None:
    logits, target = logits_case(tokens=4, columns=6)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: vocab_parallel_logp_entropy(
            z, target, temperature=0.7, inplace_backward=False, vocab_start=0, vocab_stop=6
        )[:2],
        leaf,
    )


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_has_its_exact_gradient(used: int) -> None:
    logits, target = logits_case()
    leaf = logits.detach().clone().requires_grad_()
    vocab_parallel_logp_entropy(leaf.clone(), target, **_whole(VOCAB))[used].sum().backward()
    weights = torch.zeros(2, len(target))
    weights[used] = 1.0
    torch.testing.assert_close(leaf.grad, reference_gradient(logits, target, weights), atol=1e-12, rtol=1e-12)


def test_padding_is_neither_read_nor_given_a_gradient() -> None:
    logits, target = logits_case()
    padded = torch.cat((logits, torch.full((len(target), 5), torch.nan, dtype=logits.dtype)), dim=1)
    weights = torch.ones(2, len(target))
    plain = _run(logits, target, weights, **_whole(VOCAB))
    with_padding = _run(padded, target, weights, **_whole(VOCAB))
    assert all(torch.equal(a, b) for a, b in zip(with_padding[:3], plain[:3], strict=True))
    assert torch.equal(with_padding[3][:, :VOCAB], plain[3])
    assert torch.equal(with_padding[3][:, VOCAB:], torch.zeros(len(target), 5, dtype=logits.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_bounds_hold_in_floating_point(spread: float, dtype: torch.dtype) -> None:
    logits, target = logits_case(tokens=64, spread=spread, seed=3)
    logits = logits.to(dtype)
    logits[0] = 7.0  # exactly uniform
    logp, entropy, expected_q, gradient = _run(logits, target, torch.ones(2, 64), **_whole(VOCAB))
    assert (logp <= 0).all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(VOCAB) * (1 + 1e-6)).all()
    assert expected_q[0].item() == pytest.approx(0.0, abs=1e-8)
    assert torch.isfinite(gradient).all()


def test_masked_tokens_and_extreme_logits() -> None:
    logits = torch.tensor(
        [[1e4, -1e4, 0.0, -torch.inf], [-1e4, -1e4, -torch.inf, -torch.inf], [0.0, 0.0, 0.0, -torch.inf]]
    )
    target = torch.tensor([0, 1, 3])
    logp, entropy, expected_q, gradient = _run(logits, target, torch.ones(2, 3), **_whole(4))
    assert logp.tolist() == pytest.approx([0.0, -math.log(2), -math.inf])
    assert entropy.tolist() == pytest.approx([0.0, math.log(2), math.log(3)], abs=1e-6)
    assert expected_q.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert torch.isfinite(gradient).all()


def test_nan_stays_in_its_row() -> None:
    logits, target = logits_case(tokens=3)
    logits[1, 4] = torch.nan
    logp, entropy, _ = vocab_parallel_logp_entropy(logits, target, **_whole(VOCAB))
    assert torch.isnan(logp).tolist() == [False, True, False]
    assert torch.isnan(entropy).tolist() == [False, True, False]


def test_target_that_nobody_holds_is_impossible_not_zero() -> None:
    logits, _ = logits_case(tokens=2)
    logp, *_ = vocab_parallel_logp_entropy(logits, torch.tensor([VOCAB, -1]), **_whole(VOCAB))
    assert logp.tolist() == [-math.inf, -math.inf]


def test_no_tokens() -> None:
    logits, target = logits_case(tokens=0)
    outputs = _run(logits, target, torch.ones(2, 0), **_whole(VOCAB))
    assert [output.shape for output in outputs] == [(0,), (0,), (0,), (0, VOCAB)]


def test_block_size_changes_only_the_last_bit(monkeypatch) -> None:
    """torch's `exp2` treats the last elements of a block apart, with another rounding."""
    logits, target = logits_case(tokens=23)
    weights = torch.ones(2, 23)
    expected = _run(logits, target, weights, **_whole(VOCAB))
    for rows in (1, 4, 23):
        monkeypatch.setattr(vocab_blocked, "BLOCK_BYTES", rows * VOCAB * 8)
        actual = _run(logits, target, weights, **_whole(VOCAB))
        for value, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(value, reference, atol=1e-14, rtol=1e-14)


def test_gradient_is_written_over_the_logits_and_only_with_inplace() -> None:
    logits, target = logits_case()
    for inplace in (True, False):
        leaf = logits.detach().clone().requires_grad_()
        shard = leaf.clone()
        before = shard.detach().clone()
        logp, *_ = vocab_parallel_logp_entropy(shard, target, inplace_backward=inplace, **_whole(VOCAB))
        (gradient,) = torch.autograd.grad(logp.sum(), shard)
        assert (gradient.data_ptr() == shard.data_ptr()) is inplace
        assert torch.equal(shard.detach(), before) is not inplace


def test_second_backward_is_refused() -> None:
    logits, target = logits_case()
    leaf = logits.requires_grad_()
    logp, entropy, _ = vocab_parallel_logp_entropy(leaf * 1.0, target, **_whole(VOCAB))
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="ran twice"):
        entropy.sum().backward()


def test_another_consumer_of_overwritten_logits_gets_autograds_error() -> None:
    logits, target = logits_case()
    shard = logits.requires_grad_() * 1.0
    other = shard.square().sum()
    logp, *_ = vocab_parallel_logp_entropy(shard, target, **_whole(VOCAB))
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_T": torch.zeros(3, dtype=torch.int32)}, "int64"),
        ({"target_T": torch.zeros(4, dtype=torch.int64)}, "targets"),
        ({"logits_TV": torch.zeros(3, 8, 1)}, "vocabulary columns"),
        ({"logits_TV": torch.zeros(3, 8, device="meta")}, "cpu and cuda"),
        ({"vocab_stop": 9}, "do not fit"),
        ({"temperature": 0.0}, "positive"),
        ({"temperature": torch.ones(2)}, "one per token"),
        ({"logits_TV": torch.zeros(3, 8, requires_grad=True)}, "leaf"),
        ({"logits_TV": (torch.zeros(3, 1, requires_grad=True) * 1).expand(3, 8)}, "expanded"),
    ],
)
def test_bad_arguments_are_refused(change, message) -> None:
    arguments = {
        "logits_TV": torch.zeros(3, 8),
        "target_T": torch.zeros(3, dtype=torch.int64),
        "vocab_start": 0,
        "vocab_stop": 8,
    } | change
    with pytest.raises(ValueError, match=message):
        vocab_parallel_logp_entropy(arguments.pop("logits_TV"), arguments.pop("target_T"), **arguments)
