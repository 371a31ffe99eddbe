"""The vocabulary-parallel core against the float64 reference, alone and on 2 and 3 gloo ranks."""

import math
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megarl.parallel import vocab
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from tests.dist.gloo import run_on_ranks
from tests.parallel.reference import reference_logp_entropy

VOCAB = 37


def _case(*, tokens: int = 11, columns: int = VOCAB, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) * spread
    return logits, torch.randint(0, columns, (tokens,), generator=generator)


def _run(logits: Tensor, target: Tensor, weights: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and the gradient of sum(weights[0] * logp + weights[1] * entropy) for one rank's shard."""
    leaf = logits.detach().clone().requires_grad_()
    logp, entropy = vocab_parallel_logp_entropy(leaf.clone(), target, **options)
    (weights[0] * logp + weights[1] * entropy).sum().backward()
    return logp.detach(), entropy.detach(), leaf.grad


def _reference(logits: Tensor, target: Tensor, weights: Tensor, temperature) -> tuple[Tensor, Tensor, Tensor]:
    leaf = logits.detach().double().clone().requires_grad_()
    logp, entropy = reference_logp_entropy(leaf, target, temperature)
    (weights[0].double() * logp + weights[1].double() * entropy).sum().backward()
    return logp.detach(), entropy.detach(), leaf.grad


def _whole(columns: int) -> dict[str, int]:
    return {"vocab_start": 0, "vocab_stop": columns}


def test_hand_computed_numbers() -> None:
    # algorithms golden: p = (.7, .15, .15) has H = .818808; logits are log p plus any constant.
    logits = torch.tensor([[0.7, 0.15, 0.15]]).log() + 5.0
    logp, entropy = vocab_parallel_logp_entropy(logits, torch.tensor([1]), **_whole(3))
    assert logp.item() == pytest.approx(math.log(0.15), abs=1e-6)
    assert entropy.item() == pytest.approx(0.818808, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6, "per token"])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 3e-6, 1e-6), (torch.bfloat16, 3e-6, 4e-3)],
)
def test_matches_reference(dtype, value_tolerance, gradient_tolerance, inplace, temperature) -> None:
    logits, target = _case()
    logits = logits.to(dtype)
    if temperature == "per token":
        temperature = torch.linspace(0.5, 2.0, len(target))
    weights = torch.randn(2, len(target), generator=torch.Generator().manual_seed(1))
    expected = _reference(logits, target, weights, temperature)
    actual = _run(logits, target, weights, temperature=temperature, inplace_backward=inplace, **_whole(VOCAB))
    assert actual[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual[2].dtype == dtype
    torch.testing.assert_close(actual[0].double(), expected[0], atol=value_tolerance, rtol=value_tolerance)
    torch.testing.assert_close(actual[1].double(), expected[1], atol=value_tolerance, rtol=value_tolerance)
    # bf16 gradients are rounded once, to 8 bits, from float32.
    torch.testing.assert_close(actual[2].double(), expected[2], atol=1e-6, rtol=gradient_tolerance)


def test_gradcheck() -> None:
    logits, target = _case(tokens=4, columns=6)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: vocab_parallel_logp_entropy(
            z, target, temperature=0.7, inplace_backward=False, vocab_start=0, vocab_stop=6
        ),
        leaf,
    )


@pytest.mark.parametrize("used", ["logp", "entropy"])
def test_one_output_alone_has_its_exact_gradient(used: str) -> None:
    logits, target = _case()
    leaf = logits.detach().clone().requires_grad_()
    outputs = dict(
        zip(("logp", "entropy"), vocab_parallel_logp_entropy(leaf.clone(), target, **_whole(VOCAB)), strict=True)
    )
    outputs[used].sum().backward()
    reference_leaf = logits.clone().requires_grad_()
    reference = dict(zip(("logp", "entropy"), reference_logp_entropy(reference_leaf, target), strict=True))
    reference[used].sum().backward()
    torch.testing.assert_close(leaf.grad, reference_leaf.grad, atol=1e-12, rtol=1e-12)


def test_padding_is_neither_read_nor_given_a_gradient() -> None:
    logits, target = _case()
    padded = torch.cat((logits, torch.full((len(target), 5), torch.nan, dtype=logits.dtype)), dim=1)
    weights = torch.ones(2, len(target))
    plain = _run(logits, target, weights, **_whole(VOCAB))
    with_padding = _run(padded, target, weights, **_whole(VOCAB))
    assert torch.equal(with_padding[0], plain[0])
    assert torch.equal(with_padding[1], plain[1])
    assert torch.equal(with_padding[2][:, :VOCAB], plain[2])
    assert torch.equal(with_padding[2][:, VOCAB:], torch.zeros(len(target), 5, dtype=logits.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_bounds_hold_in_floating_point(spread: float, dtype: torch.dtype) -> None:
    logits, target = _case(tokens=64, spread=spread, seed=3)
    logits = logits.to(dtype)
    logits[0] = 7.0  # exactly uniform
    logp, entropy, gradient = _run(logits, target, torch.ones(2, 64), **_whole(VOCAB))
    assert (logp <= 0).all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(VOCAB) * (1 + 1e-6)).all()
    assert torch.isfinite(gradient).all()


def test_masked_tokens_and_extreme_logits() -> None:
    logits = torch.tensor(
        [[1e4, -1e4, 0.0, -torch.inf], [-1e4, -1e4, -torch.inf, -torch.inf], [0.0, 0.0, 0.0, -torch.inf]]
    )
    target = torch.tensor([0, 1, 3])
    logp, entropy, gradient = _run(logits, target, torch.ones(2, 3), **_whole(4))
    assert logp.tolist() == pytest.approx([0.0, -math.log(2), -math.inf])
    assert entropy.tolist() == pytest.approx([0.0, math.log(2), math.log(3)], abs=1e-6)
    assert torch.isfinite(gradient).all()


def test_nan_stays_in_its_row() -> None:
    logits, target = _case(tokens=3)
    logits[1, 4] = torch.nan
    logp, entropy = vocab_parallel_logp_entropy(logits, target, **_whole(VOCAB))
    assert torch.isnan(logp).tolist() == [False, True, False]
    assert torch.isnan(entropy).tolist() == [False, True, False]


def test_target_that_nobody_holds_is_impossible_not_zero() -> None:
    logits, _ = _case(tokens=2)
    logp, _ = vocab_parallel_logp_entropy(logits, torch.tensor([VOCAB, -1]), **_whole(VOCAB))
    assert logp.tolist() == [-math.inf, -math.inf]


def test_no_tokens() -> None:
    logits, target = _case(tokens=0)
    logp, entropy, gradient = _run(logits, target, torch.ones(2, 0), **_whole(VOCAB))
    assert (logp.shape, entropy.shape, gradient.shape) == ((0,), (0,), (0, VOCAB))


def test_block_size_changes_nothing(monkeypatch) -> None:
    logits, target = _case(tokens=23)
    weights = torch.ones(2, 23)
    expected = _run(logits, target, weights, **_whole(VOCAB))
    for rows in (1, 4, 23):
        monkeypatch.setattr(vocab, "CPU_BLOCK_BYTES", rows * VOCAB * 8)
        actual = _run(logits, target, weights, **_whole(VOCAB))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_gradient_is_written_over_the_logits_and_only_with_inplace() -> None:
    logits, target = _case()
    for inplace in (True, False):
        leaf = logits.detach().clone().requires_grad_()
        shard = leaf.clone()
        before = shard.detach().clone()
        logp, _ = vocab_parallel_logp_entropy(shard, target, inplace_backward=inplace, **_whole(VOCAB))
        (gradient,) = torch.autograd.grad(logp.sum(), shard)
        assert (gradient.data_ptr() == shard.data_ptr()) is inplace
        assert torch.equal(shard.detach(), before) is not inplace


def test_second_backward_is_refused() -> None:
    logits, target = _case()
    leaf = logits.requires_grad_()
    logp, entropy = vocab_parallel_logp_entropy(leaf * 1.0, target, **_whole(VOCAB))
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="ran twice"):
        entropy.sum().backward()


def test_another_consumer_of_overwritten_logits_gets_autograds_error() -> None:
    logits, target = _case()
    shard = logits.requires_grad_() * 1.0
    other = shard.square().sum()
    logp, _ = vocab_parallel_logp_entropy(shard, target, **_whole(VOCAB))
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_T": torch.zeros(3, dtype=torch.int32)}, "int64"),
        ({"target_T": torch.zeros(4, dtype=torch.int64)}, "targets"),
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


# Per number of ranks: the token-id boundaries. Uneven, a rank of one column, and a rank that is all padding.
SHARDS = {2: ((0, 19, 37), (0, 37, 37), (0, 1, 37)), 3: ((0, 16, 32, 37), (0, 20, 37, 37), (0, 0, 36, 37))}


def _shard_cases() -> list[tuple[torch.dtype, float | Tensor, float]]:
    """(dtype, temperature, spread of the logits)."""
    per_token = torch.linspace(0.5, 2.0, 11)
    return [
        (torch.float32, 1.0, 3.0),
        (torch.bfloat16, per_token, 3.0),
        (torch.float64, 0.8, 3.0),
        (torch.float32, 1.0, 1e4),
    ]


def _on_rank(boundaries: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    rank = dist.get_rank()
    start, stop = list(pairwise(boundaries))[rank]
    widest = max(b - a for a, b in pairwise(boundaries))
    results = []
    for dtype, temperature, spread in _shard_cases():
        logits, target = _case(spread=spread)
        logits[2, :19] = -torch.inf  # nothing finite on the first of two ranks
        target[2] = 30
        # Every rank allocates the same width, as Megatron pads the vocabulary; what is beyond is never read.
        shard = torch.full((len(target), widest), torch.nan, dtype=dtype)
        shard[:, : stop - start] = logits[:, start:stop]
        weights = torch.randn(2, len(target), generator=torch.Generator().manual_seed(1))
        options = {"vocab_start": start, "vocab_stop": stop, "temperature": temperature, "group": dist.group.WORLD}
        logp, entropy, gradient = _run(shard, target, weights, **options)
        assert (gradient[:, stop - start :] == 0).all()
        results.append((logp, entropy, gradient[:, : stop - start]))
        _run(shard[:0], target[:0], weights[:, :0], **(options | {"temperature": 1.0}))
    return results


def _on_rank_all_layouts(layouts: tuple[tuple[int, ...], ...]) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    return [_on_rank(boundaries) for boundaries in layouts]


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_split_of_the_vocabulary_gives_the_reference(ranks: int) -> None:
    by_rank = run_on_ranks(_on_rank_all_layouts, ranks, SHARDS[ranks])
    for layout in range(len(SHARDS[ranks])):
        for case, (dtype, temperature, spread) in enumerate(_shard_cases()):
            shards = [by_rank[rank][layout][case] for rank in range(ranks)]
            for logp, entropy, _ in shards[1:]:
                assert torch.equal(logp, shards[0][0])
                assert torch.equal(entropy, shards[0][1])
            logits, target = _case(spread=spread)
            logits[2, :19], target[2] = -torch.inf, 30
            weights = torch.randn(2, len(target), generator=torch.Generator().manual_seed(1))
            expected = _reference(logits.to(dtype), target, weights, temperature)
            gradient = torch.cat([shard[2] for shard in shards], dim=1).double()
            exact = 1e-11 if dtype == torch.float64 else 3e-6
            torch.testing.assert_close(shards[0][0].double(), expected[0], atol=exact, rtol=exact)
            torch.testing.assert_close(shards[0][1].double(), expected[1], atol=exact, rtol=exact)
            rounding = 4e-3 if dtype == torch.bfloat16 else exact
            torch.testing.assert_close(gradient, expected[2], atol=2e-6, rtol=rounding)
