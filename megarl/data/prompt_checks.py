"""What every prompt must be before a worker starts; the same for sampled prompts and for supervised pairs.

Control tokens in what people wrote, token ids without a row in the embedding, prompts without tokens, and lengths.
"""

from collections.abc import Callable, Sequence
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.control_tokens import ControlTokens
from megarl.data.encoding import EncodedPrompt
from megarl.data.findings import Findings
from megarl.data.problems import Problem

_ALLOW = 'remove them, or set data.control_tokens = "allow" to have the model read them as control tokens'


class PromptChecks:
    """Takes a data set's prompts one by one; `finish` says which are kept, or everything that is wrong."""

    def __init__(
        self, config: DataConfig, tokenizer: Any, *, max_prompt_tokens: int, embedding_rows: int | None
    ) -> None:
        """embedding_rows: of the model, None: unknown. ConfigError as in `check_own_texts`."""
        check_own_texts(config, tokenizer)
        self.findings = Findings()
        self.num_truncated = 0
        self.longest = 0
        """Tokens of the longest prompt, before truncation."""
        self.longest_kept = 0
        self._config, self._tokenizer = config, tokenizer
        self._limit, self._rows = max_prompt_tokens, embedding_rows
        self._control = ControlTokens(tokenizer) if config.control_tokens == "error" else None
        self._kept: list[int] = []
        self._too_long: list[tuple[int, int]] = []
        self._total = 0

    def add(self, index: int, problem: Problem, encoded: EncodedPrompt) -> bool:
        """Note what is wrong with the prompt of problem `index`; indexes come in order. Whether it is kept."""
        self._total += 1
        length = len(encoded.token_ids)
        self.longest = max(self.longest, encoded.untruncated)
        if length > self._limit:
            self._too_long.append((index, length))
            if self._config.overlong_prompts == "drop":
                return False
        else:
            self._kept.append(index)
            self.longest_kept = max(self.longest_kept, length)
            self.num_truncated += length < encoded.untruncated
        for message in problem.messages:
            self.check_text(index, message["content"], f"the {message['role']}'s text")
        if not length:
            self.findings.add(
                "{count} of {total} prompts are empty; remove them",
                index,
                f"prompt {index} has no tokens, its text is {encoded.text!r}",
            )
        self.check_ids(index, encoded.token_ids, f"prompt {index}")
        return True

    def check_text(self, index: int, text: str, what: str) -> None:
        """Note control tokens in `text`, which a person or a data set wrote."""
        if self._control and (found := self._control.find(text)):
            self.findings.add(
                f"{{count}} of {{total}} problems have such a text; {_ALLOW}",
                index,
                f"{what} contains the control token {' and '.join(found)}",
            )

    def check_ids(self, index: int, ids: Sequence[int], what: str) -> None:
        """Note a token that has no row in the embedding."""
        if self._rows is not None and ids and max(ids) >= self._rows:
            self.findings.add(
                "{count} such texts; the tokenizer is not this checkpoint's, or tokens were added to it without "
                "resizing the model: copy the checkpoint's own tokenizer files",
                index,
                f"{what} contains {describe_token(self._tokenizer, max(ids))}, which is outside the model's embedding "
                f"of {self._rows} rows (vocab_size in config.json)",
            )

    def finish(self, place: Callable[[int], str]) -> list[int]:
        """Indexes of the prompts that are kept; `place` says where a problem comes from, for the ConfigError."""
        if self._too_long and self._config.overlong_prompts != "drop":
            self._note_too_long()
        self.findings.raise_any(place, total=self._total)
        if not self._kept:
            raise ConfigError(
                f"all {self._total} prompts are longer than rollout.max_prompt_tokens {self._limit}, and "
                'data.overlong_prompts is "drop": none is left; raise the limit'
            )
        return self._kept

    @property
    def num_dropped(self) -> int:
        return len(self._too_long)

    def describe(self) -> str:
        """A line on what was read."""
        kept = f"{len(self._kept)} prompts, the longest has {self.longest_kept} tokens"
        changed = ""
        if self.num_dropped:
            changed = (
                f"; {self.num_dropped} of {self._total} were longer and are left out (the longest: {self.longest})"
            )
        if self.num_truncated:
            changed = f"; {self.num_truncated} were longer and lost their beginning (the longest: {self.longest})"
        return f"{kept} (limit {self._limit}){changed}"

    def _note_too_long(self) -> None:
        index, length = self._too_long[0]
        if self._config.overlong_prompts == "truncate":
            what = "tokens without the part of the user's last message that may be cut"
            action = "raise the limit, or shorten system prompt and instruction"
        else:
            what = "tokens"
            action = 'raise the limit, or set data.overlong_prompts to "drop" or "truncate"'
        self.findings.add(
            f"{{count}} of {{total}} prompts are too long, the longest has {self.longest}; {action}",
            index,
            f"prompt {index} has {length} {what}, rollout.max_prompt_tokens is {self._limit}",
            count=len(self._too_long),
        )


def check_own_texts(config: DataConfig, tokenizer: Any) -> None:
    """ConfigError for control tokens in the configuration's own texts, unless data.control_tokens allows them."""
    control = ControlTokens(tokenizer)
    texts = {"data.system_prompt": config.system_prompt, "data.instruction": config.instruction}
    problems = [
        f"{name} contains the control token {' and '.join(found)}; {_ALLOW}"
        for name, text in texts.items()
        if config.control_tokens == "error" and text and (found := control.find(text))
    ]
    if problems:
        raise ConfigError("\n".join(problems), problems)


def describe_token(tokenizer: Any, token: int) -> str:
    """Token and id, for messages: '<|im_end|> (id 151645)'."""
    return f"token {tokenizer.decode([token])!r} (id {token})"
