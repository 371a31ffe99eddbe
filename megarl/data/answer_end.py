"""Where a turn of the assistant ends, read off the chat template: a conversation is rendered with a known answer, and
what surrounds the answer is the turn's frame.

ChatML ends a turn with `<|im_end|>` and a newline. The first control token is the end; nobody samples what follows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.chat import render_chat
from megarl.data.control_tokens import ControlTokens
from megarl.data.encoding import build_messages, tokenise
from megarl.data.messages import Message
from megarl.data.problems import Problem

_QUESTION, _ANSWER = "QUESTION7", "ANSWER7"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFrame:
    """What the chat template writes around an answer."""

    before: str = ""
    """Between the prompt, generation prompt included, and the answer: Qwen3's empty <think> block."""
    after: str = ""
    """From the answer to the end of the conversation."""
    strips: bool = False
    """It takes white space off the answer's ends."""
    end_id: int | None = None
    """The first control token of `after`; None: the turn ends with text that is no token, or with nothing."""
    up_to_end: str = ""
    """The part of `after` before `end_id`: the space that Llama 2 writes before </s>."""


def read_turn_frame(config: DataConfig, tokenizer: Any) -> TurnFrame:
    """The frame of an answer by the chat template; ConfigError when the template refuses it or leaves it out."""
    problem = Problem(messages=({"role": "user", "content": _QUESTION},), answer="", solution="")
    messages = build_messages(problem, config)
    prompt = render_chat(messages, config, tokenizer)

    def with_answer(answer: str) -> str:
        conversation: list[Message] = [*messages, {"role": "assistant", "content": answer}]
        return render_chat(conversation, config, tokenizer, add_generation_prompt=False)

    whole = with_answer(_ANSWER)
    start, marker, after = whole.rpartition(_ANSWER)
    if not marker:
        raise ConfigError(
            "the tokenizer's chat template does not show an assistant's answer, so the end of its turn cannot be read "
            "off it; correct the template, or set data.chat_template = false and rollout.stop_strings"
        )
    end_id, up_to_end = _find_end(after, tokenizer)
    return TurnFrame(
        # A template whose generation prompt opens what a finished turn lacks (R1's <think>) has no such part.
        before=start[len(prompt) :] if start.startswith(prompt) else "",
        after=after,
        strips=f"\t{_ANSWER}\t" not in with_answer(f"\t{_ANSWER}\t"),
        end_id=end_id,
        up_to_end=up_to_end,
    )


def _find_end(after: str, tokenizer: Any) -> tuple[int | None, str]:
    """The token that ends the turn and the text before it; of control tokens the first, else of added ones."""
    encoded = tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
    found = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    control = ControlTokens(tokenizer).names
    added = {token: entry for token, entry in tokenizer.added_tokens_decoder.items() if entry.content.strip()}
    for ends in (control, added):
        for token, (start, _) in found:
            if token in ends:
                return token, after[:start]
    return None, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEncoder:
    """A data set's answer as the response that a policy should have sampled: up to the end, and the end itself."""

    tokenizer: Any
    frame: TurnFrame
    end_text: str
    """Text after the answer."""
    end_ids: tuple[int, ...]
    """Tokens after that; empty where `end_text` holds the stop string."""

    def encode(self, solutions: Sequence[str]) -> list[tuple[int, ...]]:
        """Response tokens of each solution."""
        shown: Callable[[str], str] = str.strip if self.frame.strips else str
        texts = [self.frame.before + shown(solution) + self.end_text for solution in solutions]
        return [(*ids, *self.end_ids) for ids in tokenise(self.tokenizer, texts)]
