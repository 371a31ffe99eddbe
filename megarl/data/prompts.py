"""The prompt set of a run: problems rendered with the chat template and tokenised.

Prompts are made when they are read, the same each time; that every one of them fits is checked once, at load.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.problems import Message, Problem, Problems, load_problems
from megarl.records import Prompt

logger = logging.getLogger(__name__)
_BATCH_PROMPTS = 1024
_PROGRESS_EVERY_S = 10.0
T = TypeVar("T")


class PromptSet(Sequence[Prompt]):
    """All prompts of a data source, by index. Build it with `load_prompts`."""

    def __init__(self, problems: Problems, config: DataConfig, tokenizer: Any) -> None:
        self._problems, self._config, self._tokenizer = problems, config, tokenizer

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        index %= len(self)
        return self._build(index, index + 1)[0]

    def __iter__(self) -> Iterator[Prompt]:
        for start in range(0, len(self), _BATCH_PROMPTS):
            yield from self._build(start, min(start + _BATCH_PROMPTS, len(self)))

    def place(self, index: int) -> str:
        """Where prompt `index` comes from, for messages: file and row, or the task that made it."""
        return self._problems.place(index)

    def _build(self, start: int, stop: int) -> list[Prompt]:
        problems = self._problems.read(start, stop)
        texts = [render_prompt(problem, self._config, self._tokenizer) for problem in problems]
        return [
            Prompt(
                index=start + offset,
                text=text,
                token_ids=tuple(token_ids),
                answer=problem.answer,
                metadata=problem.metadata,
            )
            for offset, (problem, text, token_ids) in enumerate(
                zip(problems, texts, tokenise(self._tokenizer, texts), strict=True)
            )
        ]


def load_prompts(config: DataConfig, tokenizer: Any, *, max_prompt_tokens: int) -> PromptSet:
    """The prompts of `config.train`, each known to be readable and at most `max_prompt_tokens` long.

    ConfigError: unknown task, missing file or column, an empty data set, no chat template, or a prompt too long (all
    such prompts are counted; the message names the first by index, length and limit).
    """
    check_chat_template(config, tokenizer)
    prompts = PromptSet(load_problems(config.train), config, tokenizer)
    too_long: list[tuple[int, int]] = []
    longest = 0
    for prompt in report_progress(prompts, len(prompts), what="prompts checked"):
        longest = max(longest, len(prompt.token_ids))
        if not prompt.token_ids:
            raise ConfigError(f"prompt {prompt.index} has no tokens; its text is {prompt.text!r}")
        if len(prompt.token_ids) > max_prompt_tokens:
            too_long.append((prompt.index, len(prompt.token_ids)))
    if too_long:
        index, length = too_long[0]
        raise ConfigError(
            f"prompt {index} has {length} tokens, rollout.max_prompt_tokens is {max_prompt_tokens}; {len(too_long)} of "
            f"{len(prompts)} prompts are too long, the longest has {longest}: raise the limit or remove them"
        )
    logger.info("%d prompts, the longest has %d tokens (limit %d)", len(prompts), longest, max_prompt_tokens)
    return prompts


def check_chat_template(config: DataConfig, tokenizer: Any) -> None:
    """ConfigError when the template is asked for and the tokenizer has none."""
    if config.chat_template and not tokenizer.chat_template:
        raise ConfigError(
            "data.chat_template is true but the tokenizer has no chat template; set data.chat_template = false to feed "
            "the bare text (usual for base models), or add chat_template to the checkpoint's tokenizer_config.json"
        )


def render_prompt(problem: Problem, config: DataConfig, tokenizer: Any) -> str:
    """The text the model sees. Without a template: the messages' contents, blank lines between."""
    messages = _build_messages(problem, config)
    if not config.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:  # e.g. a template that refuses the system role
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"the tokenizer's chat template refuses messages of roles {roles}: {error}") from error
    return text


def _build_messages(problem: Problem, config: DataConfig) -> list[Message]:
    """System prompt first, the instruction on a new line of the last user message."""
    messages = [dict(message) for message in problem.messages]
    if config.instruction:
        messages[-1]["content"] += "\n" + config.instruction
    if config.system_prompt:
        if messages[0]["role"] == "system":
            messages[0]["content"] = config.system_prompt + "\n" + messages[0]["content"]
        else:
            messages.insert(0, {"role": "system", "content": config.system_prompt})
    return messages


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; special tokens come from the text (the template) alone."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def report_progress(items: Iterable[T], total: int, *, what: str) -> Iterator[T]:
    """Pass items through, with a log line every ten seconds."""
    due = time.monotonic() + _PROGRESS_EVERY_S
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() > due:
            logger.info("%d of %d %s", count, total, what)
            due = time.monotonic() + _PROGRESS_EVERY_S
