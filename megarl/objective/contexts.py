"""Tokens whose distributions are the same by construction, and how their rounding is kept from deciding anything.

The first tokens of a group all follow one prompt; copies of a response follow each other all the way. Where prompt and
response so far (the context) are equal, so are the policy's distributions, and with them H and N; where the token is
too, log p. In floating point they differ in the last digits, and by others under another layout. A rule that ranks them
or finds its threshold among them would choose by these digits: with a quantile it is not unlikely but certain that the
threshold is one of them, when it falls into their class at all. So before anything is chosen, tokens of one class get
one value, their largest: they are then equal to the last bit under every layout, and rules treat them as equals.

What is left to rounding is a token of another context that lies as close to a threshold as rounding is large; for that,
see RESOLUTION. T = response tokens of a rank's share of a mini-batch.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megarl.objective.tokens import Reduce, TokenBatch
from megarl.records import Sample, TokenIds

Numbers = NDArray[np.int32]

RESOLUTION = 2.0**-14
"""6.1e-5 nats: to what entropies and log-probs are told apart by rules that rank them or compare them with each other.
Layouts differ by about 1e-6 in float32, and where the policy is certain that is all there is: a token of probability 1
has an entropy between -1e-6 and 1e-6. Whatever the policy's dtype: in bfloat16 layouts differ by 1e-2, which is no
rounding of equal numbers but another model, and only equal contexts are protected from it."""

_ALONE = -1


def number_contexts(samples: Sequence[Sample]) -> list[tuple[Numbers, Numbers]]:
    """For each sample of a whole mini-batch (context, outcome) of its first response tokens, int32 of equal lengths.

    Tokens of the mini-batch have equal context numbers, from 0, where prompt and response up to the token are equal,
    and equal outcome numbers where the token is, too; -1: no other token's is, which is so of all response tokens
    beyond. They come from the tokens alone.
    """
    prefixes = _number_prefixes(samples)
    sizes = [min(len(ids), len(sample.response)) for ids, sample in zip(prefixes, samples, strict=True)]
    contexts = _number([ids[:size] for ids, size in zip(prefixes, sizes, strict=True)], sizes)
    outcomes = _number([ids[1 : size + 1] for ids, size in zip(prefixes, sizes, strict=True)], sizes)
    return list(zip(contexts, outcomes, strict=True))


def _number_prefixes(samples: Sequence[Sample]) -> list[NDArray[np.int64]]:
    """For each sample the classes of equal prefixes that end at its prompt, one token later, and so on, as far as
    another sample has the same.

    In lexicographic order, samples with a common prefix are neighbours, so that each shares as much with any other as
    with one of its two.
    """
    streams = [np.concatenate((sample.prompt, sample.response)) for sample in samples]
    order = sorted(range(len(samples)), key=lambda index: streams[index].tobytes())
    shared = [_common_length(streams[one], streams[other]) for one, other in pairwise(order)]
    class_of = np.zeros(max(map(len, streams), default=0) + 1, dtype=np.int64)  # by length, of the sample's prefixes
    found = [class_of[:0]] * len(samples)
    fresh = before = 0
    for index, after in zip(order, (*shared, 0), strict=False):
        # Up to `before` tokens a prefix is the previous sample's, too; beyond, it begins a class with the next one's.
        beyond = max(after - before, 0)
        class_of[before + 1 : before + beyond + 1] = np.arange(fresh, fresh + beyond)
        fresh += beyond
        found[index] = class_of[len(samples[index].prompt) : max(before, after) + 1].copy()
        before = after
    return found


def _common_length(one: TokenIds, other: TokenIds) -> int:
    """Tokens that both begin with."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def _number(classes: Sequence[NDArray[np.int64]], sizes: Sequence[int]) -> list[Numbers]:
    """The classes of a sample's first tokens as numbers from 0, filled up to its size; -1 for a class of one token."""
    _, class_of, counts = np.unique(
        np.concatenate([*classes, np.array([], dtype=np.int64)]), return_inverse=True, return_counts=True
    )
    several = counts > 1
    numbers = np.where(several, several.cumsum() - 1, _ALONE)[class_of].astype(np.int32)
    filled = np.full(sum(sizes), _ALONE, dtype=np.int32)
    ends = [0, *accumulate(sizes)]
    taken = 0
    for start, of_sample in zip(ends, classes, strict=False):
        filled[start : start + len(of_sample)] = numbers[taken : taken + len(of_sample)]
        taken += len(of_sample)
    return [filled[start:end] for start, end in pairwise(ends)]


def share_values(
    tokens: TokenBatch,
    reduce: Reduce,
    *,
    of_context: Sequence[str] = ("entropy_T", "expected_q_T", "old_entropy_T"),
    of_outcome: Sequence[str] = ("logp_T", "old_logp_T"),
) -> TokenBatch:
    """The tokens with one value for each class, the largest, in these columns; detached.

    Two collectives, the second of a number per class and column; one where no two contexts are equal, and none where
    the tokens do not say (`context_T` is None). Every rank must call.
    """
    if tokens.context_T is None or tokens.outcome_T is None:
        return tokens
    classes = [tokens.context_T] * len(of_context) + [tokens.outcome_T] * len(of_outcome)
    values = [getattr(tokens, name).detach() for name in (*of_context, *of_outcome)]
    outside = tokens.context_T.new_full((1,), _ALONE)
    local = torch.stack([torch.cat((class_T, outside)).amax() for class_T in (tokens.context_T, tokens.outcome_T)])
    num_contexts, num_outcomes = (largest + 1 for largest in reduce.max(local).tolist())
    if not num_contexts:
        return tokens
    sizes = [num_contexts] * len(of_context) + [num_outcomes] * len(of_outcome)
    tables = [_largest(value_T, class_T, size) for value_T, class_T, size in zip(values, classes, sizes, strict=True)]
    shared = reduce.max(torch.cat(tables)).split(sizes)
    return tokens.replace(
        **{
            name: torch.where(class_T >= 0, torch.cat((of_class, of_class.new_zeros(1)))[class_T], value_T)
            for name, of_class, class_T, value_T in zip(
                (*of_context, *of_outcome), shared, classes, values, strict=True
            )
        }
    )


def at_resolution(values_T: Tensor) -> Tensor:
    """The nearest multiples of RESOLUTION, exact in the values' dtype (float32: below 1024)."""
    return (values_T / RESOLUTION).round() * RESOLUTION


def _largest(values_T: Tensor, class_T: Tensor, num_classes: int) -> Tensor:
    """[num_classes]: the largest value of each class on this rank, -inf where it has none."""
    inside_T = class_T >= 0
    start = values_T.new_full((num_classes,), -torch.inf)
    return start.scatter_reduce(0, class_T[inside_T], values_T[inside_T], "amax")
