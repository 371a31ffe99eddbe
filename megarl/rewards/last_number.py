r"""GSM8K: the last number of the answer against the ground truth. Pure.

Numbers are compared exactly: 3/4, \frac34 and 0.75 are one number, 1e16 is not 16, 72.00 is 72, 20% is 20.
"""

import re
from decimal import Decimal
from fractions import Fraction

from megarl.rewards.final_answer import find_answer, read_visible
from megarl.rewards.number_text import join_digits, plain_characters

_FRAC = re.compile(r"(?:(\d)\s*)?\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_ASIDE = re.compile(r"(?<=\w)\s+\(")  # "72 (from 36 * 2)"
# The exponent of a unit is not the last number: 25 cm^2, 25\text{ cm}^2.
_UNIT_POWER = re.compile(
    r"([A-Za-z]|\\(?:text|mathrm|mbox|operatorname)\s?\{[^{}\d]{0,40}\})\s?\^\s?(?:\{\s?[23]\s?\}|[23](?!\d))"
)
_MONEY = re.compile(r"\\?\$|\\[()]")
# A minus is a sign unless a word, a digit or a closing parenthesis stands before it ("5-3" ends in 3, "x=-3" in -3).
_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w).])-)?(?:(?P<whole>\d+) +(?P<part>\d+)/(?P<of>\d+)(?![\d/])"
    rf"|(?P<number>{_DECIMAL})(?:[eE](?P<exponent>[+-]?\d+)\b)?(?:/(?P<divisor>\d+(?:\.\d+)?)(?!/))?)",
    re.ASCII,
)
_LARGEST_EXPONENT = 400
Number = Decimal | Fraction


def read_number(answer: str) -> Number:
    """The one number of a ground truth: "34.", "3/4", "$1,000", "#### 72"; ValueError when it is not one."""
    numbers = _find_numbers(_statement(answer))
    value = _value(numbers[-1]) if numbers else None
    if value is None:
        raise ValueError(f'the ground truth {answer!r} has no number; reward.verifier.kind = "gsm8k" needs one')
    if len(numbers) > 1:
        raise ValueError(f'the ground truth {answer!r} has {len(numbers)} numbers; "gsm8k" needs one')
    return value


def read_whole_number(text: str) -> Number | None:
    """The value of a text that is a number and nothing else; None where it is more, or less."""
    found = _NUMBER.fullmatch(_spell(text).strip(" \t\n.$"))
    return _value(found) if found else None


def find_last_number(response: str, *, thinking: bool = False) -> Number | None:
    """The number that `score_last_number` compares; None where there is none."""
    numbers = _find_numbers(_statement(response, thinking=thinking))
    return _value(numbers[-1]) if numbers else None


def score_last_number(answer: str, response: str, *, thinking: bool = False) -> float:
    """1.0 when the answer's last number equals the ground truth's value, else 0.0.

    `thinking`: the prompt ended inside a thought. "72 or 73" is no answer.
    """
    expected = read_number(answer)
    statement = _statement(response, thinking=thinking)
    numbers = _find_numbers(statement)
    found = [_value(number) for number in numbers[-2:]]
    if not found or found[-1] is None:
        return 0.0
    if len(found) == 2 and _is_alternative(statement[numbers[0 - len(found)].end() : numbers[-1].start()]):
        return float(all(_equal(expected, value) for value in found))
    return float(_equal(expected, found[-1]))


def _statement(text: str, *, thinking: bool = False) -> str:
    """What the text says its answer is, else all of it; spelt plainly."""
    visible = read_visible(text, thinking=thinking)
    stated = find_answer(visible)
    if stated is None:
        return _spell(visible)
    return _spell(stated.text if stated.boxed else _ASIDE.split(stated.text)[0])


def _spell(text: str) -> str:
    text = join_digits(_MONEY.sub("", _UNIT_POWER.sub(r"\1", plain_characters(text))))
    return _FRAC.sub(lambda f: f"{f[1] + ' ' if f[1] else ''}{f[2] or f[3]}/{f[4] or f[5]}", text)


def _find_numbers(text: str) -> list[re.Match[str]]:
    return list(_NUMBER.finditer(_spell(text)))


def _is_alternative(between: str) -> bool:
    return re.fullmatch(r"\W*\bor\b\W*", between, re.IGNORECASE) is not None


def _value(found: re.Match[str]) -> Number | None:
    """None for a number too large to compare, or divided by zero."""
    sign = -1 if found["sign"] else 1
    if found["whole"]:
        whole, part, of = (Fraction(Decimal(found[name])) for name in ("whole", "part", "of"))
        return sign * (whole + part / of) if of else None
    value = sign * Decimal(found["number"].replace(",", ""))
    exponent = int((found["exponent"] or "0")[:6])
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = value.scaleb(exponent) if exponent else value
    if not found["divisor"]:
        return value
    divisor = Fraction(Decimal(found["divisor"]))
    return Fraction(value) / divisor if divisor else None


def _equal(one: Number, other: Number | None) -> bool:
    return other is not None and Fraction(one) == Fraction(other)
