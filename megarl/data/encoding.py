"""From problems to the tokens that the model sees: one way for prompts, supervised pairs and the guided loss's answers.

With a chat template the special tokens are the template's. Bare text begins with what the tokenizer itself puts before
a text (Llama 3's <|begin_of_text|>), once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.chat import check_chat_template, render_chat
from megarl.data.messages import Message
from megarl.data.problems import Problem, Problems

_BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as the model sees it."""

    text: str
    """Chat template included; of bare text without the tokenizer's own beginning."""
    token_ids: tuple[int, ...]
    untruncated: int
    """Tokens before data.overlong_prompts = "truncate" took some."""


class PromptEncoder:
    """Renders and tokenises; the same problem gives the same tokens each time."""

    def __init__(self, config: DataConfig, tokenizer: Any, *, max_prompt_tokens: int) -> None:
        """ConfigError when the chat template is missing or does not read what it is given."""
        check_chat_template(config, tokenizer)
        self.config, self.tokenizer, self.max_prompt_tokens = config, tokenizer, max_prompt_tokens
        self._beginning = () if config.chat_template else find_beginning(tokenizer)

    def encode(self, problems: Sequence[Problem]) -> list[EncodedPrompt]:
        """The problems' prompts; only with "truncate" are they sure to be short enough, and there only where the user's
        last message is long enough to be shortened."""
        texts = [self._render(build_messages(problem, self.config)) for problem in problems]
        return [
            self._fit(problem, EncodedPrompt(text=text, token_ids=ids, untruncated=len(ids)))
            for problem, text, ids in zip(problems, texts, self._tokenise(texts), strict=True)
        ]

    def encode_all(self, problems: Problems, indexes: Sequence[int]) -> Iterator[tuple[Problem, EncodedPrompt]]:
        """The problems of these indexes of a data set, each with its prompt, in the order asked for."""
        for start in range(0, len(indexes), _BATCH):
            batch = problems.take(indexes[start : start + _BATCH])
            yield from zip(batch, self.encode(batch), strict=True)

    def _render(self, messages: Sequence[Message]) -> str:
        """Without a template: the messages' contents, blank lines between."""
        if not self.config.chat_template:
            return "\n\n".join(message["content"] for message in messages)
        return render_chat(messages, self.config, self.tokenizer)

    def _tokenise(self, texts: list[str]) -> list[tuple[int, ...]]:
        first = self._beginning
        plain = tokenise(self.tokenizer, texts)
        return [(*ids,) if tuple(ids[: len(first)]) == first else (*first, *ids) for ids in plain]

    def _fit(self, problem: Problem, encoded: EncodedPrompt) -> EncodedPrompt:
        """The prompt itself, or with "truncate" one whose last user message has lost its beginning."""
        excess = len(encoded.token_ids) - self.max_prompt_tokens
        if excess <= 0 or self.config.overlong_prompts != "truncate":
            return encoded
        content = problem.messages[-1]["content"]
        offsets = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cut = excess
        # Tokens merge anew at the cut, so the first one may leave one too many.
        while cut < len(offsets):
            messages = build_messages(problem, self.config, user_text=content[offsets[cut][0] :])
            text = self._render(messages)
            (ids,) = self._tokenise([text])
            if len(ids) <= self.max_prompt_tokens:
                return EncodedPrompt(text=text, token_ids=ids, untruncated=encoded.untruncated)
            cut += len(ids) - self.max_prompt_tokens
        return encoded


def build_messages(problem: Problem, config: DataConfig, *, user_text: str | None = None) -> list[Message]:
    """System prompt first, the instruction on a new line of the last user message (`user_text` in its place)."""
    messages = [dict(message) for message in problem.messages]
    if user_text is not None:
        messages[-1]["content"] = user_text
    if config.instruction:
        messages[-1]["content"] += "\n" + config.instruction
    if config.system_prompt:
        if messages[0]["role"] == "system":
            messages[0]["content"] = config.system_prompt + "\n" + messages[0]["content"]
        else:
            messages.insert(0, {"role": "system", "content": config.system_prompt})
    return messages


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; special tokens come from the text alone."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def find_beginning(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text of its own accord: Llama's BOS, of most others nothing."""
    probe = "a"
    whole: list[int] = tokenizer(probe)["input_ids"]
    (plain,) = tokenise(tokenizer, [probe])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    raise ConfigError(
        f"the tokenizer encodes {probe!r} as {whole} with special tokens and as {plain} without; expected the same "
        "tokens between special ones, so that bare text (data.chat_template = false) can begin as it does"
    )
