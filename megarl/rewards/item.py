"""What a reward is asked and answers, and the error that stops a run when it cannot."""

from dataclasses import dataclass

from megarl.records import Failure, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardItem:
    """One response to score."""

    prompt: Prompt
    response: str
    """Decoded, without the end-of-sequence token."""
    response_tokens: int
    """Sampled tokens, end-of-sequence included: what the overlong penalty counts."""
    prompt_index: int
    """Position of the prompt among those the step drew (not in the data set: a step may draw a prompt twice)."""
    sample_index: int
    """Position among the prompt's samples."""
    truncated: bool = False
    """Cut off at rollout.max_response_tokens."""

    @property
    def place(self) -> str:
        """Which sample this is, for messages."""
        return f"data set prompt {self.prompt.index} (batch position {self.prompt_index}), sample {self.sample_index}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one response: the verifier's number; None where it gave none."""

    value: float | None
    failure: Failure | None = None


class NoNumberError(ValueError):
    """A user's function returned what is no score."""


class RewardError(RuntimeError):
    """A reward cannot be computed and no score would be honest: a user function raised, or workers do not start."""
