"""math-verify: is the response's final expression equal to the ground truth?

Its own time limits are signal based and turned off; whoever calls must bound the time (the worker pool does).
"""

import functools
import logging
from typing import Any


def build_math_scorer() -> "MathScorer":
    """Import math-verify (half a second) and return the scorer."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    # It warns that its time limit is off, which is what we want.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # Priority 0 puts \boxed{} before "the answer is" and bare expressions.
    return MathScorer((LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()))


class MathScorer:
    """Scores 1.0 or 0.0; remembers the parsed ground truths of recent prompts."""

    def __init__(self, extraction: tuple[Any, ...]) -> None:
        self._extraction = extraction
        self._parse_gold = functools.lru_cache(maxsize=1024)(self._parse_gold_uncached)

    def __call__(self, answer: str, response: str) -> float:
        """1.0 when equal. A response that cannot be read scores 0.0; ValueError when the ground truth cannot."""
        from math_verify import parse, verify

        gold = self._parse_gold(answer)
        target = parse(
            response, self._extraction, extraction_mode="first_match", parsing_timeout=None, raise_on_error=False
        )
        return float(verify(list(gold), target, timeout_seconds=None, raise_on_error=False))

    def _parse_gold_uncached(self, answer: str) -> tuple[Any, ...]:
        from math_verify import parse

        text = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
        gold = tuple(parse(text, self._extraction, parsing_timeout=None))
        if not gold:
            raise ValueError(f"math-verify finds no expression in the ground truth {answer!r}")
        return gold
