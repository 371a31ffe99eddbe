"""Texts from the table of bytes are those of the tokenizer, and whoever has no such table is asked."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megarl.data.decoding import _AT_ONCE, _byte_table, build_decode, build_token_text


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(["the answer is 漢字, therefore x = é"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("≈ not bytes", special=False), "<tool>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<hidden>"]})
    return tokenizer


def by_tokenizer(tokenizer: PreTrainedTokenizerFast, responses: list[np.ndarray]) -> list[str]:
    return [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in responses]


def test_the_table_gives_the_tokenizers_texts(byte_level: PreTrainedTokenizerFast) -> None:
    assert _byte_table(byte_level) is not None
    draw = random.Random(1)
    # Random tokens cut characters in half; ids beyond the vocabulary are what a padded output layer may sample.
    top = len(byte_level) + 20
    responses = [np.array([draw.randrange(top) for _ in range(draw.randint(0, 80))], np.int32) for _ in range(200)]
    spelled = np.array(byte_level.encode("x = 3 ≈ not bytes<tool> é 漢字 <hidden><|im_end|>"), np.int32)
    texts = build_decode(byte_level)([*responses, spelled])
    assert texts == by_tokenizer(byte_level, [*responses, spelled])
    assert texts[-1].rstrip() == "x = 3 ≈ not bytes<tool> é 漢字"
    assert any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


def test_responses_longer_than_what_is_looked_up_together(byte_level: PreTrainedTokenizerFast) -> None:
    draw = np.random.default_rng(2)
    sizes = (_AT_ONCE + 7, 0, 3, _AT_ONCE - 3, 0)
    responses = [draw.integers(0, len(byte_level), size, dtype=np.int32) for size in sizes]
    assert build_decode(byte_level)(responses) == by_tokenizer(byte_level, responses)
    assert build_decode(byte_level)([]) == []


def test_a_token_alone_has_its_name_and_is_asked_for_once(byte_level: PreTrainedTokenizerFast) -> None:
    token_text = build_token_text(byte_level)
    special = byte_level.convert_tokens_to_ids("<|im_end|>")
    assert token_text(special) == "<|im_end|>"
    assert token_text(special) is token_text(special)


def test_another_kind_of_tokenizer_is_asked() -> None:
    """Its texts put a space between words, which no table of tokens knows."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert build_decode(words)([np.array([0, 1, 0], np.int32), np.array([], np.int32)]) == ["a b a", ""]
    # Byte-level by its name, but its texts are tidied up afterwards.
    tokenizer.decoder = decoders.ByteLevel()
    tidied = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)
    response = [np.array([0, 2, 1], np.int32)]
    assert build_decode(tidied)(response) == by_tokenizer(tidied, response)
