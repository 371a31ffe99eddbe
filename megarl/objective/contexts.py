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

import torch
from torch import Tensor

from megarl.objective.token_random import token_keys
from megarl.objective.tokens import Reduce, TokenBatch
from megarl.records import Sample

RESOLUTION = 2.0**-14
"""6.1e-5 nats: to what entropies and log-probs are told apart by rules that rank them or compare them with each other.
Layouts differ by about 1e-6 in float32, and where the policy is certain that is all there is: a token of probability 1
has an entropy between -1e-6 and 1e-6. Whatever the policy's dtype: in bfloat16 layouts differ by 1e-2, which is no
rounding of equal numbers but another model, and only equal contexts are protected from it."""

_ALONE = -1


def number_contexts(samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
    """For each sample of a whole mini-batch (context, outcome) of its response tokens, int64 [tokens] each.

    Tokens of the mini-batch have equal context numbers, from 0, where prompt and response up to the token are equal,
    and equal outcome numbers where the token is, too; -1: no other token's is. They come from the tokens alone. Two
    contexts among n are mistaken for one with probability n^2 / 2^65: hashes of 64 bits are compared.
    """
    lengths = [len(sample.prompt) + len(sample.response) for sample in samples]
    starts = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)[:-1]
    of_sample = torch.arange(len(samples)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    flat = [token for sample in samples for token in (*sample.prompt, *sample.response)]
    tokens = torch.tensor(flat, dtype=torch.int64)
    place = torch.arange(sum(lengths)) - starts[of_sample]
    # A prefix is the set of its (token, place): its hash is the sum of theirs, modulo 2^64.
    hashes = torch.cat(
        (torch.zeros(1, dtype=torch.int64), token_keys(seed=0, step=0, sample_id_T=tokens, position_T=place).cumsum(0))
    )
    is_response = place >= torch.tensor([len(sample.prompt) for sample in samples], dtype=torch.int64)[of_sample]
    at, before = is_response.nonzero().squeeze(1), hashes[starts][of_sample[is_response]]
    sizes = [len(sample.response) for sample in samples]
    columns = (_number(hashes[at] - before), _number(hashes[at + 1] - before))
    return list(zip(*(column.split(sizes) for column in columns), strict=True))


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


def _number(hashes: Tensor) -> Tensor:
    """Classes of equal hashes, numbered from 0; -1 for a hash of its own."""
    _, class_of, size = hashes.unique(return_inverse=True, return_counts=True)
    several = size > 1
    number = torch.where(several, several.cumsum(0) - 1, _ALONE)
    return number[class_of]


def _largest(values_T: Tensor, class_T: Tensor, num_classes: int) -> Tensor:
    """[num_classes]: the largest value of each class on this rank, -inf where it has none."""
    inside_T = class_T >= 0
    start = values_T.new_full((num_classes,), -torch.inf)
    return start.scatter_reduce(0, class_T[inside_T], values_T[inside_T], "amax")
