"""Responses to text, without special tokens: what `tokenizer.decode` gives, several times as fast.

A byte-level tokenizer (GPT-2's kind: Qwen, Llama 3, SmolLM2) writes every token as characters that stand for bytes, so
a text is the bytes of its tokens, one after the other. That is a table; for every other kind the tokenizer is asked.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megarl.records import TokenIds

_PROBES = 64
_PROBE_TOKENS = 48


def build_decode(tokenizer: Any) -> Callable[[Sequence[TokenIds]], list[str]]:
    """A function from responses to their texts, of a fast tokenizer. It may run in a thread."""

    def ask(responses: Sequence[TokenIds]) -> list[str]:
        return list(tokenizer.batch_decode([ids.tolist() for ids in responses], skip_special_tokens=True))

    table = _byte_table(tokenizer)
    if table is None:
        return ask

    def look_up(responses: Sequence[TokenIds]) -> list[str]:
        return [b"".join(map(table.__getitem__, ids.tolist())).decode(errors="replace") for ids in responses]

    return look_up


def _byte_table(tokenizer: Any) -> Mapping[int, bytes] | None:
    """The bytes of every token, none for a special one and for ids beyond the vocabulary; None where the tokenizer's
    texts are not made so."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    table: defaultdict[int, bytes] = defaultdict(bytes)
    for text, index in tokenizer.get_vocab().items():
        table[index] = b"" if index in special else _token_bytes(text, bytes_of)
    draw = random.Random(0)
    probes = [[draw.randrange(len(table) + 8) for _ in range(_PROBE_TOKENS)] for _ in range(_PROBES)]
    made = [b"".join(table[index] for index in probe).decode(errors="replace") for probe in probes]
    return table if made == list(tokenizer.batch_decode(probes, skip_special_tokens=True)) else None


def _token_bytes(text: str, bytes_of: dict[str, int]) -> bytes:
    """What a token's characters stand for; an added token may have others, which stand for themselves."""
    return bytes(bytes_of[c] for c in text) if all(c in bytes_of for c in text) else text.encode()
