"""Tokens to text: what `tokenizer.decode` gives, several times as fast.

A byte-level tokenizer (GPT-2's kind: Qwen, Llama 3, SmolLM2) writes every token as characters that stand for bytes, so
a text is the bytes of its tokens, one after the other. That is a table; for every other kind the tokenizer is asked.
"""

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa

from megarl.records import TokenIds, group_by_tokens

_PROBES = 64
_PROBE_TOKENS = 48
_AT_ONCE = 1 << 16
"""Tokens that are looked up together: enough for a call to cost nothing, few enough for a core's cache."""


def build_decode(tokenizer: Any) -> Callable[[Sequence[TokenIds]], list[str]]:
    """A function from responses to their texts without special tokens, of a fast tokenizer. It may run in a thread."""
    table = _byte_table(tokenizer)
    if table is not None:
        return table.decode

    def ask(responses: Sequence[TokenIds]) -> list[str]:
        return list(tokenizer.batch_decode([ids.tolist() for ids in responses], skip_special_tokens=True))

    return ask


def build_token_text(tokenizer: Any) -> Callable[[int], str]:
    """A function from a token to its text alone, a special token's name included; asked of the tokenizer once each."""
    return functools.cache(lambda token: str(tokenizer.decode([token])))


@dataclass(frozen=True, slots=True)
class _ByteTable:
    """The bytes of every token.

    A special token has none, and neither has the last entry, which is for all ids beyond the vocabulary.
    """

    tokens: pa.BinaryArray

    @classmethod
    def of(cls, tokens: Sequence[bytes]) -> Self:
        return cls(pa.array([*tokens, b""], pa.binary()))

    def decode(self, responses: Sequence[TokenIds]) -> list[str]:
        return [text for some in group_by_tokens(responses, len, at_least=_AT_ONCE) for text in self._decode(some)]

    def _decode(self, responses: Sequence[TokenIds]) -> list[str]:
        ids = np.minimum(np.concatenate(responses), len(self.tokens) - 1)
        # Where each token's bytes begin, and the bytes, one token after the other.
        _, starts, data = self.tokens.take(pa.array(ids)).buffers()
        cuts = np.frombuffer(starts, np.int32)[np.cumsum([0, *map(len, responses)])].tolist()
        view = memoryview(data or b"")
        return [str(view[start:end], "utf-8", "replace") for start, end in pairwise(cuts)]


def _byte_table(tokenizer: Any) -> _ByteTable | None:
    """None where the tokenizer's texts are not the bytes of its tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = tokenizer.get_vocab()
    tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, index in vocabulary.items():
        tokens[index] = b"" if index in special else _token_bytes(text, bytes_of)
    table = _ByteTable.of(tokens)
    draw = random.Random(0)
    probes = [[draw.randrange(len(tokens) + 8) for _ in range(_PROBE_TOKENS)] for _ in range(_PROBES)]
    made = table.decode([np.array(probe, np.int32) for probe in probes])
    return table if made == list(tokenizer.batch_decode(probes, skip_special_tokens=True)) else None


def _token_bytes(text: str, bytes_of: dict[str, int]) -> bytes:
    """What a token's characters stand for; an added token may have others, which stand for themselves."""
    return bytes(bytes_of[c] for c in text) if all(c in bytes_of for c in text) else text.encode()
