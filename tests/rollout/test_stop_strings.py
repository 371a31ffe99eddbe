"""Stop strings in a real vLLM engine: the tokens that spell one stay, and tokens, text and log-probs line up.

The tests share one engine, whose model is random: what it writes without a stop is the reference, and a piece of that
text is then made the stop.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.data.tokenizer import load_tokenizer
from megarl.records import Rollout, SampleRequest
from megarl.rollout.engine import RolloutEngine

LENGTH = 24
CONFIG = RolloutConfig(
    max_prompt_tokens=32, max_response_tokens=LENGTH, cpu_kv_cache_gib=0.25, stop_strings=["no such text"]
)
REQUESTS = [SampleRequest(prompt=tuple(range(5, 9)), seed=seed) for seed in range(48)]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path, runner: asyncio.Runner) -> Iterator[RolloutEngine]:
    model = ModelConfig(path=str(tiny_model_dir), dtype="float32")
    engine = RolloutEngine(config=CONFIG, model=model, index=0, stop_token_ids=())
    runner.run(engine.start())
    yield engine
    runner.run(engine.shutdown())


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def free(engine: RolloutEngine, runner: asyncio.Runner) -> list[Rollout]:
    """The responses that nothing stops."""
    rollouts = runner.run(engine.generate(REQUESTS))
    assert {(rollout.stop_reason, len(rollout.response)) for rollout in rollouts} == {("length", LENGTH)}
    return rollouts


def stopped_at(
    string: str, number: int, engine: RolloutEngine, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> Rollout:
    """Response `number` again, with a stop string."""
    monkeypatch.setattr(engine._sampler, "_config", CONFIG.model_copy(update={"stop_strings": [string]}))
    (rollout,) = runner.run(engine.generate([REQUESTS[number]]))
    return rollout


def first_with(tokens: Sequence[int], tokenizer: Any, string: str) -> int:
    """Tokens of the shortest beginning whose text has the string."""
    return next(count for count in range(1, LENGTH + 1) if string in tokenizer.decode(tokens[:count]))


def readable(free: Sequence[Rollout], tokenizer: Any, start: int, stop: int) -> tuple[int, list[str]]:
    """A response, and the texts of its tokens [start, stop), which are ordinary ones of two characters or more."""
    for number, rollout in enumerate(free):
        texts = [tokenizer.decode([token]) for token in rollout.response[start:stop].tolist()]
        if all(len(text) > 1 and text.isascii() and text.isprintable() and "<|" not in text for text in texts):
            return number, texts
    raise AssertionError("no response is readable there; take other seeds")


def test_a_string_over_several_tokens_ends_inside_the_last_one(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    free: list[Rollout],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, texts = readable(free, tokenizer, 5, 7)
    string = texts[0][1:] + texts[1][:-1]
    count = first_with(free[number].response.tolist(), tokenizer, string)
    rollout = stopped_at(string, number, engine, runner, monkeypatch)
    assert count <= 7
    assert np.array_equal(rollout.response, free[number].response[:count])
    assert np.array_equal(rollout.behavior_logp, free[number].behavior_logp[:count])
    assert rollout.stop_reason == "stop"
    # What the verifier reads has the string, with the whole of the token that ended it.
    assert string in tokenizer.decode(rollout.response.tolist())
    assert string not in tokenizer.decode(rollout.response[:-1].tolist())


def test_a_string_that_the_last_token_completes_is_a_stop(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    free: list[Rollout],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, texts = readable(free, tokenizer, LENGTH - 2, LENGTH)
    string = "".join(texts)
    if first_with(free[number].response.tolist(), tokenizer, string) != LENGTH:
        pytest.fail("the text stands earlier too; take other seeds")
    rollout = stopped_at(string, number, engine, runner, monkeypatch)
    assert (rollout.response.tolist(), rollout.stop_reason) == (free[number].response.tolist(), "stop")


def test_a_control_token_may_be_spelled_out(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    free: list[Rollout],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = (
        (n, t) for n, rollout in enumerate(free) for t in rollout.response.tolist() if t in tokenizer.all_special_ids
    )
    number, token = next(found)
    rollout = stopped_at(tokenizer.convert_ids_to_tokens(token), number, engine, runner, monkeypatch)
    everything = free[number].response.tolist()
    assert rollout.response.tolist() == everything[: everything.index(token) + 1]
    assert rollout.stop_reason == "stop"


def test_tokens_that_are_given_stop_beside_strings(
    engine: RolloutEngine, runner: asyncio.Runner, free: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = int(free[0].response[5])
    monkeypatch.setattr(engine._sampler, "_stop_token_ids", (stop,))
    (rollout,) = runner.run(engine.generate(REQUESTS[:1]))
    count = free[0].response.tolist().index(stop) + 1
    assert np.array_equal(rollout.response, free[0].response[:count])
    assert np.array_equal(rollout.behavior_logp, free[0].behavior_logp[:count])
    assert rollout.stop_reason == "stop"
