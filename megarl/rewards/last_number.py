"""GSM8K: the last number of the response against the ground truth. Pure."""

import re
from decimal import Decimal

# A minus is a sign unless a word, a digit or a closing parenthesis stands before it ("5-3" ends in 3, "x=-3" in -3).
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)


def find_last_number(text: str) -> Decimal | None:
    """The last number of a text: "$1,234.50." is 1234.50; None when there is none."""
    numbers = _NUMBER.findall(text.replace("$", "").replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def score_last_number(answer: str, response: str) -> float:
    """1.0 when the response's last number equals the ground truth's value (72.00 equals 72), else 0.0."""
    expected = find_last_number(answer)
    if expected is None:
        raise ValueError(f'the ground truth {answer!r} has no number; reward.verifier.kind = "gsm8k" needs one')
    return float(find_last_number(response) == expected)
