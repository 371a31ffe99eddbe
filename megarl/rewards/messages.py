"""What a scoring process is asked and answers, over one socket.

The parent sends (reward config, data config), the process answers Ready or Failed; then for every Question or
GroundTruth it answers Taken, then one of Scored, Checked and Failed.
"""

from dataclasses import dataclass
from typing import Literal

from megarl.records import Prompt

OUT_OF_MEMORY_EXIT = 70


@dataclass(frozen=True, slots=True)
class Question:
    """Score a response."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Can the verifier read this?"""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The verifier is built."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The question was read: a process that dies before this did not die of it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The verifier's score of the response."""

    value: float


@dataclass(frozen=True, slots=True)
class Checked:
    """What is wrong with the ground truth; None: nothing."""

    problem: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The verifier raised, or could not be built."""

    error: str
    """Type and message."""
    trace: str
    kind: Literal["raised", "config", "no number"] = "raised"
    """config: a ConfigError, whose message is enough. no number: a user's function returned what is no score."""


Reply = Scored | Checked | Failed
