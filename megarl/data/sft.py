"""Pairs for the supervised warm start: the same prompts as RL, answered by the data set itself.

Prompt and response are tokenised apart, as in RL, so the model sees the same boundary at both.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.problems import Problems, load_problems
from megarl.data.prompts import check_chat_template, render_prompt, report_progress, tokenise

Pair = tuple[tuple[int, ...], tuple[int, ...]]
_BATCH_PAIRS = 1024


class PairSet(Sequence[Pair]):
    """(prompt token ids, response token ids with the end-of-sequence token), by index; made when read."""

    def __init__(self, problems: Problems, config: DataConfig, tokenizer: Any) -> None:
        self._problems, self._config, self._tokenizer = problems, config, tokenizer

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        return self._build(index, index + 1)[0]

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self), _BATCH_PAIRS):
            yield from self._build(start, min(start + _BATCH_PAIRS, len(self)))

    def _build(self, start: int, stop: int) -> list[Pair]:
        problems = self._problems.read(start, stop)
        prompts = tokenise(self._tokenizer, [render_prompt(p, self._config, self._tokenizer) for p in problems])
        responses = tokenise(self._tokenizer, [problem.solution for problem in problems])
        eos = self._tokenizer.eos_token_id
        return [(tuple(prompt), (*response, eos)) for prompt, response in zip(prompts, responses, strict=True)]


def load_pairs(config: DataConfig, tokenizer: Any, *, max_prompt_tokens: int, max_response_tokens: int) -> PairSet:
    """Supervised pairs of `config.train`, each checked to fit both limits (eos counted).

    Responses: reasoning-gym's answer, GSM8K's worked answer, prompt_answer's answer, DAPO-Math's ground truth (that set
    has no solutions). ConfigError as in `load_prompts`, and when the tokenizer has no end-of-sequence token.
    """
    check_chat_template(config, tokenizer)
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos_token; set it in tokenizer_config.json, or answers would never end")
    pairs = PairSet(load_problems(config.train), config, tokenizer)
    limits = (
        ("prompt", "rollout.max_prompt_tokens", max_prompt_tokens),
        ("answer", "rollout.max_response_tokens", max_response_tokens),
    )
    for index, pair in enumerate(report_progress(pairs, len(pairs), what="pairs checked")):
        if len(pair[1]) == 1:
            raise ConfigError(f"the answer of pair {index} is empty; a supervised example needs at least one token")
        for (part, limit_name, limit), tokens in zip(limits, pair, strict=True):
            if len(tokens) > limit:
                raise ConfigError(
                    f"the {part} of pair {index} has {len(tokens)} tokens, {limit_name} is {limit}; raise the limit or "
                    "remove the pair"
                )
    return pairs
