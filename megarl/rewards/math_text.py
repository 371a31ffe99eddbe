r"""The text of a mathematical answer before math-verify parses it: one spelling, no units, words told from products."""

import re

from megarl.rewards.number_text import join_digits, join_mixed

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?"
_DELIMITERS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]|\\left\.|\\right\.")
_CURRENCY = re.compile(r"\\\$|\\pounds\b|\\euro\b|[€£¥₹₽₩₫₺]|\b(?:US|C|A)\$|\b(?:USD|EUR|GBP|INR|CNY|RMB|JPY)\b")
_TEXT = re.compile(r"\\(?:text(?:normal|bf|it|rm|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")
_CONNECTIVE = re.compile(
    r"\s*(?:,|;)?\s*(?:\\(?:text|mathrm|mbox|textrm)\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
_PERCENT_WORD = re.compile(r"(?<=\d)\s*\\?(?:percent(?:age)?|pct)\b", re.IGNORECASE)
_ROOT_IN_PARENTHESES = re.compile(r"\\?\bsqrt\s*\(([^()]*)\)")
_NUMBER_AND_UNIT = re.compile(rf"({_NUMBER})\s*(\\?%)?\s*((?:(?:[A-Za-z]{{2,}}\.?|[a-z])(?:\^\{{?[23]\}}?)?[\s/]*)+)")
_LABEL = re.compile(
    r"\(?\s*(?:\\(?:text(?:bf|rm)?|mathrm|mathbf)\s*\{\s*\(?)?([A-Za-z])\s*[).:]\s*\}?(?:[\\~]?\s.*)?", re.DOTALL
)
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_FLIPPED = re.compile(rf"\s*({_NUMBER})\s*=\s*([A-Za-z])\s*\Z")
_ASIDE = re.compile(r"\s+\((?=[^()]*[A-Za-z]{3})[^()\\]*\)\s*$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad)(?![A-Za-z])|[\s{}$]+")
_SPACING_ENDS = ("\\\\", r"\,", r"\;", r"\:", r"\!", r"\quad", r"\qquad")
_PUNCTUATION = (".", ",", ";", ":", "?")
# Letters that are not a name or a unit.
_MATHEMATICAL = frozenset(
    [
        "and",
        "or",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "lg",
        "exp",
        "sqrt",
        "pi",
        "infty",
        "infinity",
        "oo",
        "gcd",
        "lcm",
        "mod",
        "max",
        "min",
        "det",
        "deg",
    ]
)
# Not units: they change the number, or say that there are several.
_NO_UNIT = _MATHEMATICAL | frozenset(
    [
        "thousand",
        "million",
        "billion",
        "trillion",
        "dozen",
        "hundred",
        "percent",
        "to",
        "not",
        "than",
        "more",
        "less",
        "least",
        "most",
        "times",
        "plus",
        "minus",
    ]
)
_NAME = re.compile(r"(?:[A-Za-z](?:_\{?\w+\}?)?\s*=?)?")
_APPROXIMATELY = re.compile(r"\\approx(?:eq)?(?![A-Za-z])|\\simeq\b|\\doteq\b|~=")


def clean_expression(content: str) -> str:
    r"""What a box or an answer's line holds, in the spelling that math-verify reads: no delimiters, currency, trailing
    punctuation, words after a number; "or" and "and" as commas; numbers as `join_digits` and `join_mixed` write
    them."""
    text = _DELIMITERS.sub("", content.strip().strip("`\"'"))
    text = _drop_end(_CURRENCY.sub("", text).replace("~", " "))
    text = _ASIDE.sub("", text).replace(r"\varnothing", r"\emptyset")
    text = _ROOT_IN_PARENTHESES.sub(r"\\sqrt{\1}", text)
    text = _PI.sub(r"\\pi ", _PERCENT_WORD.sub(r"\\%", text))
    text = join_mixed(join_digits(_CONNECTIVE.sub(", ", text).strip(" ,")))
    return _FLIPPED.sub(r"\2=\1", _drop_unit(text))


def unwrap_texts(content: str) -> str:
    r"""The content with "\text{...}" as prose."""
    return _TEXT.sub(r"\1", content)


def is_expression(line: str) -> bool:
    """Whether a line of prose is an expression as it stands: no words but mathematical ones, or one word alone."""
    text = clean_expression(line)
    bare = _COMMAND.sub(" ", _TEXT.sub(" ", text))
    return all(word.lower() in _MATHEMATICAL for word in _WORD.findall(bare)) or word_of(text) is not None


def word_of(expression: str) -> str | None:
    r"""The word or name that an expression is, lower case without spaces: "CAB", "\text{no}", "Monday"; None where it
    is mathematics. A single letter is a variable, "pi" a number."""
    text = _TEXT.sub(r"\1", expression).strip().strip("()").replace("\\ ", " ").strip(" .")
    letters = re.sub(r"[\s'-]+", "", text).lower()
    if len(letters) < 2 or not re.fullmatch(r"[^\W\d_]+", letters) or letters in _MATHEMATICAL:
        return None
    return letters


def label_of(line: str) -> str | None:
    """The letter of a chosen option: "(B)", "B.", "B) 34" and "(B) 34" are "b"; None where there is none."""
    found = _LABEL.fullmatch(line.strip())
    return found[1].lower() if found else None


def spelling_of(expression: str) -> str:
    """The expression without spacing, for comparison as text."""
    return _SPACING.sub("", _TEXT.sub(r"\1", expression))


def split_approximations(content: str) -> list[str]:
    r"""The sides of "\approx"; one where there is none. A name on its left, as in x \approx 3, is no side."""
    sides = [part.strip(" $") for part in _APPROXIMATELY.split(content)]
    return sides[1:] if len(sides) > 1 and _NAME.fullmatch(sides[0]) else sides


def _drop_end(text: str) -> str:
    """Without punctuation, spacing commands and line breaks at the end."""
    text = text.strip()
    while (found := next((end for end in _SPACING_ENDS if text.endswith(end)), None)) or text.endswith(_PUNCTUATION):
        text = text.removesuffix(found) if found else text.rstrip("".join(_PUNCTUATION))
        text = text.rstrip()
    return text


def _drop_unit(text: str) -> str:
    found = _NUMBER_AND_UNIT.fullmatch(text)
    if found is None or any(word.lower() in _NO_UNIT for word in _WORD.findall(found[3])):
        return text
    if not _WORD.search(found[3]):  # single letters: "5x" is a product, "5 m" is math-verify's business
        return text
    return found[1] + (found[2] or "")
