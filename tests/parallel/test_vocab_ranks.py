"""Both cores on 2 and 3 gloo ranks: any split of the vocabulary gives the reference, with one collective."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megarl.parallel.fused_linear import fused_linear_logp_entropy
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from tests.dist.gloo import run_on_ranks
from tests.parallel.reference import (
    linear_case,
    logits_case,
    reference_distribution,
    reference_gradient,
    reference_linear_gradients,
    upstream_weights,
)

# Per number of ranks: the token-id boundaries. Uneven, a rank of one column, and a rank that is all padding.
SHARDS = {2: ((0, 19, 37), (0, 37, 37), (0, 1, 37)), 3: ((0, 16, 32, 37), (0, 20, 37, 37), (0, 0, 36, 37))}
PER_TOKEN = torch.linspace(0.5, 2.0, 11)
CORE_CASES = (
    (torch.float32, 1.0, 3.0),
    (torch.bfloat16, PER_TOKEN, 3.0),
    (torch.float64, 0.8, 3.0),
    (torch.float32, 1.0, 1e4),
)
"""(dtype, temperature, spread of the logits)."""
FUSED_CASES = ((torch.float32, 1.0), (torch.bfloat16, PER_TOKEN), (torch.float64, 0.8))
"""(dtype, temperature)."""


def _core_logits(dtype: torch.dtype, spread: float) -> tuple[Tensor, Tensor]:
    logits, target = logits_case(spread=spread)
    logits[2, :19], target[2] = -torch.inf, 30  # nothing finite on the first of two ranks
    return logits.to(dtype), target


@contextmanager
def _count_collectives() -> Iterator[Counter]:
    """Counts the calls of every collective of torch.distributed in this process."""
    names = [
        name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast", "gather", "scatter", "send"))
    ]
    names += ["barrier", "isend", "irecv", "recv", "batch_isend_irecv"]
    originals = {name: getattr(dist, name) for name in names if callable(getattr(dist, name))}
    calls: Counter = Counter()

    def counted(name):
        def call(*args, **options):
            calls[name] += 1
            return originals[name](*args, **options)

        return call

    for name in originals:
        setattr(dist, name, counted(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _differentiate(compute, leaves: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    """Outputs and the leaves' gradients; one collective forward, none backward (none at all without tokens)."""
    with _count_collectives() as forward:
        logp, entropy, expected_q = compute(*leaves)
    with _count_collectives() as backward:
        (weights[0] * logp + weights[1] * entropy).sum().backward()
    assert sum(forward.values()) == (1 if logp.numel() else 0), forward
    assert not backward, backward
    return logp.detach(), entropy.detach(), expected_q, *(leaf.grad for leaf in leaves)


def _core_on_rank(boundaries: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    start, stop = list(pairwise(boundaries))[dist.get_rank()]
    widest = max(b - a for a, b in pairwise(boundaries))
    results = []
    for dtype, temperature, spread in CORE_CASES:
        logits, target = _core_logits(dtype, spread)
        # Every rank allocates the same width, as Megatron pads the vocabulary; what is beyond is never read.
        shard = torch.full((len(target), widest), torch.nan, dtype=dtype)
        shard[:, : stop - start] = logits[:, start:stop]
        options = {"vocab_start": start, "vocab_stop": stop, "group": dist.group.WORLD, "with_expected_q": True}

        def compute(leaf, target=target, temperature=temperature, options=options):
            return vocab_parallel_logp_entropy(leaf.clone(), target, temperature=temperature, **options)

        outputs = _differentiate(compute, (shard.requires_grad_(),), upstream_weights(len(target)))
        assert (outputs[3][:, stop - start :] == 0).all()
        results.append((*outputs[:3], outputs[3][:, : stop - start]))
        no_tokens = partial(compute, target=target[:0], temperature=1.0)
        _differentiate(no_tokens, (shard.detach()[:0].requires_grad_(),), upstream_weights(0))
    return results


def _fused_on_rank(boundaries: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    start, stop = list(pairwise(boundaries))[dist.get_rank()]
    widest = max(b - a for a, b in pairwise(boundaries))
    results = []
    for dtype, temperature in FUSED_CASES:
        hidden, weight, target = linear_case(dtype=dtype)
        shard = torch.full((widest, weight.shape[1]), torch.nan, dtype=dtype)
        shard[: stop - start] = weight[start:stop]
        options = {"vocab_start": start, "vocab_stop": stop, "group": dist.group.WORLD, "with_expected_q": True}

        def compute(hidden, shard, target=target, temperature=temperature, options=options):
            return fused_linear_logp_entropy(hidden, shard, target, temperature=temperature, **options)

        leaves = (hidden.requires_grad_(), shard.requires_grad_())
        outputs = _differentiate(compute, leaves, upstream_weights(len(target)))
        assert (outputs[4][stop - start :] == 0).all()
        results.append((*outputs[:4], outputs[4][: stop - start]))
    return results


def _all_layouts(layouts: tuple[tuple[int, ...], ...]) -> list[tuple[list[tuple[Tensor, ...]], ...]]:
    return [(_core_on_rank(boundaries), _fused_on_rank(boundaries)) for boundaries in layouts]


def _check_values(shards: list[tuple[Tensor, ...]], expected: tuple[Tensor, ...], *, exact: float) -> None:
    """Equal to the last bit on all ranks, and equal to the reference."""
    for index, reference in enumerate(expected):
        assert all(torch.equal(shard[index], shards[0][index]) for shard in shards[1:])
        torch.testing.assert_close(shards[0][index].double(), reference, atol=exact, rtol=exact)


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_split_of_the_vocabulary_gives_the_reference(ranks: int) -> None:
    by_rank = run_on_ranks(_all_layouts, ranks, SHARDS[ranks])
    weights = upstream_weights(11)
    for layout in range(len(SHARDS[ranks])):
        for case, (dtype, temperature, spread) in enumerate(CORE_CASES):
            shards = [by_rank[rank][layout][0][case] for rank in range(ranks)]
            logits, target = _core_logits(dtype, spread)
            exact = 1e-11 if dtype == torch.float64 else 3e-6
            rounding = 4e-3 if dtype == torch.bfloat16 else exact
            _check_values(shards, reference_distribution(logits, target, temperature), exact=exact)
            gradient = torch.cat([shard[3] for shard in shards], dim=1).double()
            reference = reference_gradient(logits, target, weights, temperature)
            torch.testing.assert_close(gradient, reference, atol=2e-6, rtol=rounding)
        for case, (dtype, temperature) in enumerate(FUSED_CASES):
            shards = [by_rank[rank][layout][1][case] for rank in range(ranks)]
            hidden, weight, target = linear_case(dtype=dtype)
            exact = 1e-11 if dtype == torch.float64 else 6e-6
            rounding = 8e-3 if dtype == torch.bfloat16 else exact
            logits = hidden.double() @ weight.double().t()
            _check_values(shards, reference_distribution(logits, target, temperature), exact=exact)
            references = reference_linear_gradients(hidden, weight, target, weights, temperature)
            # The hidden states' gradient is a sum over ranks, left to the caller; the weight's is split.
            gradients = (sum(shard[3].double() for shard in shards), torch.cat([shard[4] for shard in shards]).double())
            for gradient, reference in zip(gradients, references, strict=True):
                atol = rounding * float(reference.abs().max())
                torch.testing.assert_close(gradient, reference, atol=atol, rtol=rounding)


def _through_megatrons_mappings() -> tuple[Tensor, Tensor]:
    """Gradients of the hidden states in front of each mapping: [tokens, H], and this rank's tokens with SP."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
    )

    from megarl.parallel.device import adapt_process_to_cpu

    adapt_process_to_cpu()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    hidden, weight, target = linear_case(tokens=10, columns=36, dtype=torch.float64)
    rank, weights = dist.get_rank(), upstream_weights(10)
    shard = weight[18 * rank : 18 * rank + 18]
    options = {"vocab_start": 18 * rank, "vocab_stop": 18 * rank + 18, "group": dist.group.WORLD}
    gradients = []
    for mapping, leaf in (
        (copy_to_tensor_model_parallel_region, hidden.clone()),
        (gather_from_sequence_parallel_region, hidden[5 * rank : 5 * rank + 5].clone()),
    ):
        leaf.requires_grad_()
        logp, entropy, _ = fused_linear_logp_entropy(mapping(leaf), shard, target, **options)
        (weights[0] * logp + weights[1] * entropy).sum().backward()
        gradients.append(leaf.grad)
    parallel_state.destroy_model_parallel()
    return gradients[0], gradients[1]


def test_megatrons_mappings_sum_the_hidden_gradient() -> None:
    by_rank = run_on_ranks(_through_megatrons_mappings, 2)
    hidden, weight, target = linear_case(tokens=10, columns=36, dtype=torch.float64)
    reference, _ = reference_linear_gradients(hidden, weight, target, upstream_weights(10))
    for copied, _ in by_rank:
        torch.testing.assert_close(copied, reference, atol=1e-12, rtol=1e-12)
    gathered = torch.cat([own for _, own in by_rank])
    torch.testing.assert_close(gathered, reference, atol=1e-12, rtol=1e-12)
