"""One problem as its source states it, before templates and tokens."""

from dataclasses import dataclass, field
from typing import Any

from megarl.data.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A conversation up to the answer, the ground truth, and the answer's full text."""

    messages: tuple[Message, ...]
    """{role, content}, ending with the user's."""
    answer: str
    """Ground truth as a verifier reads it."""
    solution: str
    """What a supervised example answers; the ground truth where the source has no more."""
    metadata: dict[str, Any] = field(default_factory=dict)
