"""Exact order statistics of values that lie on several ranks, without gathering them.

Values become integers of the same order (sign and magnitude bits of a float turned into two's complement), and a
radix histogram of 2^16 bins finds the wanted one, 16 bits per round: 2 rounds for float32, 4 for float64 and int64. A
round is one `reduce.sum` of 512 KiB for each distinct bin that is still searched, whatever the number of tokens.
-0.0 and 0.0 are equal. T = values of this rank, which may be 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.objective.tokens import Reduce

_DIGIT_BITS = 16
_BINS = 1 << _DIGIT_BITS
_KEY_BITS = {torch.float32: 32, torch.float64: 64, torch.int64: 64}
_FLOAT_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(slots=True)
class _Search:
    """One wanted order statistic: where it is known to lie."""

    rank: int
    """0-based among the values that share the prefix."""
    prefix: int = 0
    """The leading bits found so far, as a signed number; none at first."""
    below: int = 0
    """Values smaller than every value with the prefix."""
    equal: int = 0
    """Values with the prefix."""


def count(tokens: Tensor | int, reduce: Reduce, *, device: torch.device | str = "cpu") -> int:
    """How many over all ranks: of a mask's True entries, or of this rank's number (sent from `device`)."""
    local = tokens.sum() if isinstance(tokens, Tensor) else torch.tensor(tokens, device=device)
    return int(reduce.sum(local.to(torch.int64).reshape(1)).item())


def kth_smallest(values_T: Tensor, ranks: Sequence[int], reduce: Reduce) -> Tensor:
    """The values at 0-based `ranks` of the sorted multiset over all ranks of the group, [len(ranks)], exactly.

    Several ranks share the rounds. `ranks` is the same everywhere; without any there is no collective.

    Raises:
        TypeError: `values_T` is neither float32, float64 nor int64.
        ValueError: a value is NaN, or a rank is outside the multiset; on every rank of the group.
    """
    keys_T = _ordered_keys(values_T)
    if not ranks:
        return values_T.new_empty(0)
    searches = [_Search(rank) for rank in ranks]
    _run(searches, keys_T, num_bits=_KEY_BITS[values_T.dtype], num_nan=values_T.isnan().sum(), reduce=reduce)
    found_K = torch.tensor([search.prefix for search in searches], dtype=torch.int64, device=values_T.device)
    return _values_of_keys(found_K, values_T.dtype)


def smallest_k_mask(keys: Sequence[Tensor], *, eligible_T: Tensor, k: int, reduce: Reduce) -> Tensor:
    """bool [T]: exactly the `k` smallest eligible tokens over all ranks (all of them where there are fewer).

    `keys`, each [T], order the tokens lexicographically: a later key breaks ties of the earlier ones, and costs
    collectives only where a tie straddles the k-th place. `k` is the same on every rank.

    Raises:
        TypeError: a key is neither float32, float64 nor int64.
        ValueError: an eligible token's key is NaN, or tokens around the k-th place are equal in every key; on every
            rank.
    """
    chosen_T, open_T = torch.zeros_like(eligible_T), eligible_T
    if k < 1:
        return chosen_T
    needed, num_open = k, count(eligible_T, reduce)
    for key_T in keys:
        if num_open <= needed:
            break
        ordered_T, search = _ordered_keys(key_T), _Search(needed - 1)
        num_nan = (open_T & key_T.isnan()).sum()
        _run([search], ordered_T[open_T], num_bits=_KEY_BITS[key_T.dtype], num_nan=num_nan, reduce=reduce)
        chosen_T = chosen_T | (open_T & (ordered_T < search.prefix))
        open_T = open_T & (ordered_T == search.prefix)
        needed, num_open = needed - search.below, search.equal
    if num_open > needed:
        raise ValueError(
            f"{num_open} tokens are equal in all {len(keys)} keys and {needed} of them are to be chosen; the last keys "
            "must tell any two tokens apart (sample_id and position; is a sample twice in the mini-batch?)"
        )
    return chosen_T | open_T


def _run(searches: Sequence[_Search], keys_T: Tensor, *, num_bits: int, num_nan: Tensor, reduce: Reduce) -> None:
    """Narrow every search down to one value, 16 bits a round."""
    for shift in range(num_bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        is_first = shift == num_bits - _DIGIT_BITS
        prefixes = sorted({search.prefix for search in searches})
        rows = [_histogram(keys_T, shift, None if is_first else prefix) for prefix in prefixes]
        counts = reduce.sum(torch.cat((*rows, num_nan.reshape(1).to(torch.int64))))
        cumulative_PN = counts[:-1].reshape(len(prefixes), _BINS).cumsum(1)
        if is_first:
            _check(searches, num_values=int(cumulative_PN[0, -1]), num_nan=int(counts[-1]))
        _descend(searches, cumulative_PN, {prefix: row for row, prefix in enumerate(prefixes)}, is_first=is_first)


def _histogram(keys_T: Tensor, shift: int, prefix: int | None) -> Tensor:
    """[2^16] int64: local keys per value of the 16 bits above `shift`, of the keys whose higher bits are `prefix`."""
    if prefix is None:
        return torch.bincount((keys_T >> shift) + _BINS // 2, minlength=_BINS)
    inside_T = keys_T[(keys_T >> (shift + _DIGIT_BITS)) == prefix]
    return torch.bincount((inside_T >> shift) & (_BINS - 1), minlength=_BINS)


def _descend(searches: Sequence[_Search], cumulative_PN: Tensor, rows: dict[int, int], *, is_first: bool) -> None:
    """Move every search into the bin that holds its rank; `cumulative_PN` counts the values up to each bin."""
    device = cumulative_PN.device
    row_K = torch.tensor([rows[search.prefix] for search in searches], device=device)
    rank_K = torch.tensor([search.rank for search in searches], dtype=torch.int64, device=device)
    edges_KN = cumulative_PN[row_K]
    bin_K = torch.searchsorted(edges_KN, rank_K.unsqueeze(1), right=True).squeeze(1)
    upto_K = edges_KN.gather(1, bin_K.unsqueeze(1)).squeeze(1)
    before_K = torch.where(bin_K > 0, edges_KN.gather(1, (bin_K - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0)
    found = torch.stack((bin_K, before_K, upto_K), dim=1).tolist()
    for search, (digit, before, upto) in zip(searches, found, strict=True):
        search.prefix = digit - _BINS // 2 if is_first else (search.prefix << _DIGIT_BITS) | digit
        search.rank -= before
        search.below += before
        search.equal = upto - before


def _check(searches: Sequence[_Search], *, num_values: int, num_nan: int) -> None:
    if num_nan:
        raise ValueError(f"{num_nan} of the values to be ordered are NaN; finite or infinite ones are expected")
    outside = [search.rank for search in searches if not 0 <= search.rank < num_values]
    if outside:
        raise ValueError(
            f"order statistics {outside} were asked of {num_values} values; expected 0 to {num_values - 1}"
        )


def _ordered_keys(values_T: Tensor) -> Tensor:
    """int64 of the same order as the values; a NaN has some key."""
    if values_T.dtype not in _KEY_BITS:
        raise TypeError(
            f"values of dtype {values_T.dtype} cannot be ordered; convert them to float32, float64 or int64"
        )
    if values_T.dtype == torch.int64:
        return values_T
    # Adding 0.0 turns -0.0 into 0.0. The bits of negative floats fall as the float rises: flip all but the sign.
    bits_T = (values_T.detach() + 0.0).view(_FLOAT_BITS[values_T.dtype])
    return _flip_negative(bits_T).to(torch.int64)


def _values_of_keys(keys_T: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int64:
        return keys_T
    return _flip_negative(keys_T.to(_FLOAT_BITS[dtype])).view(dtype)


def _flip_negative(bits_T: Tensor) -> Tensor:
    """Its own inverse."""
    return torch.where(bits_T < 0, bits_T ^ torch.iinfo(bits_T.dtype).max, bits_T)
