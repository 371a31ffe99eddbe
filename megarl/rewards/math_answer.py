"""math-verify: is the response's answer equal to the ground truth?

Where the answer stands is `final_answer`'s, how it is spelt `math_text`'s, what math-verify accepts too easily
`math_rules`'. math-verify's own time limits are signal based and turned off; whoever calls must bound the time (the
worker pool does).
"""

import functools
import logging
import re
from dataclasses import dataclass
from typing import Any

from megarl.rewards.final_answer import Answer, find_answer, read_visible
from megarl.rewards.math_rules import is_rounding, refuse
from megarl.rewards.math_text import (
    clean_expression,
    is_expression,
    label_of,
    spelling_of,
    split_approximations,
    unwrap_texts,
    word_of,
)
from megarl.rewards.number_text import join_digits, join_mixed

_NOT_A_NUMBER = re.compile(r"[-+]?nan", re.IGNORECASE)
_HEDGED_END = re.compile(r"(\S*\d[^\s,]*),?\s+or\s+(\S*\d\S*?)[^\w)}\]]*$", re.IGNORECASE)
_SHARE = re.compile(r"([^%]+?)\s*\\?%", re.DOTALL)
_PLAIN_NUMBER = re.compile(r"[-+]?[\d.]+")
_SEVERAL_TEXTS = re.compile(r"(?:\\(?:text|mbox|mathrm)\b.*){2}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Gold:
    """A ground truth, parsed."""

    text: str
    """As `clean_expression` spells it."""
    word: str | None
    """Where it is a word or a name, which is compared as text alone."""
    label: str | None
    """Where it is an option, its letter."""
    parsed: tuple[Any, ...]


def build_math_scorer() -> "MathScorer":
    """Import math-verify (half a second) and return the scorer."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    # It warns that its time limit is off, which is what we want.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = LatexExtractionConfig(boxed_match_priority=0)
    return MathScorer(latex, ExprExtractionConfig())


class MathScorer:
    """Scores 1.0 or 0.0; remembers the parsed ground truths of recent prompts."""

    def __init__(self, latex: Any, plain: Any) -> None:
        from dataclasses import replace

        self._extraction = (latex, plain)
        # math-verify drops everything from the first \text to the end as a unit; with several that is the answer.
        self._keeping_texts = (replace(latex, normalization_config=replace(latex.normalization_config, units=False)),)
        self.read_gold = functools.lru_cache(maxsize=4096)(self._read_gold)

    def __call__(self, answer: str, response: str, *, thinking: bool = False) -> float:
        """1.0 when equal. A response that cannot be read scores 0.0; ValueError when the ground truth cannot.

        `thinking`: the prompt ended inside a thought.
        """
        gold = self.read_gold(answer)
        visible = read_visible(response, thinking=thinking)
        stated = find_answer(visible) or _whole(visible)
        if stated is None:
            return float(self._matches_prose(gold, visible))
        if stated.boxed:  # \boxed{\text{The answer is } 34}
            stated = find_answer(unwrap_texts(stated.text)) or stated
        if not stated.text:
            return 0.0
        if stated.boxed or is_expression(stated.text) or label_of(stated.text):
            return float(self._matches(gold, stated.text))
        return float(self._matches_prose(gold, f"answer: {stated.text}"))

    def _read_gold(self, answer: str) -> Gold:
        """ValueError says what is wrong with a ground truth."""
        visible = read_visible(answer)
        found = find_answer(visible)
        text = clean_expression(found.text if found and found.boxed else visible)
        if _NOT_A_NUMBER.fullmatch(text):
            raise ValueError(f"the ground truth {answer!r} is not a number")
        parsed = tuple(self._parse(text))
        word = word_of(text)
        if word is None and all(isinstance(part, str) for part in parsed) and re.search(r"[\\^={}]|^\W*$", text):
            raise ValueError(f"math-verify finds no expression in the ground truth {answer!r}")
        label = text.strip("() ").lower() if len(text.strip("() ")) == 1 else label_of(text)
        return Gold(text=text, word=word, label=label, parsed=parsed)

    def _matches(self, gold: Gold, content: str) -> bool:
        """An answer that is an expression."""
        sides = split_approximations(content)
        if len(sides) > 1:
            return self._agree(sides) and any(self._matches(gold, side) for side in sides)
        content = sides[0]
        text = clean_expression(content)
        word, label = word_of(text), label_of(content)
        if gold.word is not None and word is not None:
            return word == gold.word
        if gold.label is not None and label is not None:
            return label == gold.label
        if spelling_of(text) == spelling_of(gold.text) or text.strip("() ").lower() == gold.label:
            return True
        return self._equal(gold, self._parse(text))

    def _matches_prose(self, gold: Gold, text: str) -> bool:
        """An answer somewhere in a sentence, where math-verify looks for it."""
        hedged = _HEDGED_END.search(text.strip())
        if hedged:
            return self._matches(gold, f"{hedged[1]}, {hedged[2]}")
        return gold.word is None and self._equal(gold, self._parse_text(join_mixed(join_digits(text))))

    def _equal(self, gold: Gold, target: list[Any]) -> bool:
        return any(_agree_on(one, other) for one in gold.parsed for other in target)

    def _agree(self, sides: list[str]) -> bool:
        """Whether every side of an approximation is a rounding of the one before it."""
        texts = [clean_expression(side) for side in sides]
        numbers = [(self._parse(text) or [None])[0] for text in texts]
        return all(
            is_rounding(exact, rounded, written=text)
            for exact, rounded, text in zip(numbers, numbers[1:], texts[1:], strict=False)
        )

    def _parse(self, expression: str) -> list[Any]:
        if not expression:
            return []
        share = _SHARE.fullmatch(expression)
        if share and not _PLAIN_NUMBER.fullmatch(share[1]):
            return [_as_percent(part) for part in self._parse(share[1]) if not isinstance(part, str)]
        extraction = self._keeping_texts if _SEVERAL_TEXTS.search(expression) else self._extraction
        return self._parse_text(f"\\boxed{{{expression}}}", extraction)

    def _parse_text(self, text: str, extraction: tuple[Any, ...] | None = None) -> list[Any]:
        from math_verify import parse

        parsed: list[Any] = parse(
            text,
            extraction or self._extraction,
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=False,
        )
        return parsed


def _agree_on(gold: Any, answer: Any) -> bool:
    """Equal for math-verify, and by our rules. A percentage equals its number with the sign and without."""
    from math_verify import verify

    def agree(one: Any, other: Any) -> bool:
        equal = verify(one, other, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=False)
        return bool(equal) and not refuse(one, other)

    bare_gold, bare_answer = _without_percent(gold), _without_percent(answer)
    one_has_the_sign = (bare_gold is gold) != (bare_answer is answer)
    return agree(gold, answer) or (one_has_the_sign and agree(bare_gold, bare_answer))


def _as_percent(value: Any) -> Any:
    r"""math-verify's form of a percentage; it reads the sign after a plain number alone, not 33\frac13\%."""
    from math_verify.parser import convert_to_pct
    from sympy import Expr

    return convert_to_pct(value) if isinstance(value, Expr) else value


def _without_percent(value: Any) -> Any:
    from math_verify.grader import get_pct_val

    return get_pct_val(value, value)


def _whole(visible: str) -> Answer | None:
    """A response that is nothing but its answer."""
    text = visible.strip()
    return Answer(text, boxed=False) if text and "\n" not in text and is_expression(text) else None
