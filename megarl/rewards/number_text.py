r"""Numbers as people write them, brought to one spelling: "1,234" and "1{,}234" to "1234", "1.5\times 10^3" to "1500".

Pure text to text; what is not a number passes unchanged.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

_LARGEST_EXPONENT = 400
_SUPERSCRIPTS = {ord(sign): plain for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True)}
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_FRACTION_SLASH = "\N{FRACTION SLASH}"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_CHARACTERS = {
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"), ""),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-"),
    **{0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)},  # the fullwidth forms of ASCII
    **{ord(sign): plain for sign, plain in {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}.items()},
    **{ord(sign): plain for sign, plain in {"。": ".", "、": ",", "×": "*", "⋅": "*", "·": "*", "÷": "/"}.items()},
    **{
        ord(sign): rf"\{command} "
        for sign, command in {
            "π": "pi", "∞": "infty", "≤": "le", "≥": "ge", "≠": "ne", "∪": "cup", "∩": "cap",
            "∈": "in", "±": "pm", "≈": "approx", "≅": "approx", "θ": "theta",
        }.items()
    },
    ord("°"): r"^\circ ",
}  # fmt: skip
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)|\{[^{}]*\})")

# Groups of three digits with one kind of separator throughout.
_THOUSANDS = re.compile(
    r"(?<![\d.,/^_])\d{1,3}(?P<sep>,\\!|\\!,|,|\{,\}|\\,|\\;|\\ |~| )\d{3}(?:(?P=sep)\d{3})*(?!\d|/|,\d|\{,\}\d)"
)
_SCIENTIFIC = re.compile(
    r"(?<![\w.,^])(?P<digits>\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<e>[+-]?\d+)(?![\w.]*\w)"
    r"|\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d+)\s*\}|\(\s*(?P<round>[+-]?\d+)\s*\)"
    r"|(?P<bare>[+-]?\d+)))"
)
_LARGE = re.compile(r"(?<![\w.,^])(\d+(?:\.\d+)?|\.\d+)\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_REPEATING = re.compile(
    r"(?<![\d.,])(?P<whole>\d{0,30})\.(?P<fixed>\d{0,30})"
    r"(?:\\(?:overline|bar|dot)\s*(?:\{\s*(?P<braced>\d{1,30})\s*\}|(?P<bare>\d))(?!\d|\s*\\dot)"
    r"|\\dot\s*\{?(?P<first>\d)\}?(?P<middle>\d{0,30})\\dot\s*\{?(?P<last>\d)(?!\d)\}?)"
)
_MIXED = re.compile(r"(?<![\w./^)}])(\d{1,30}) +(\d{1,30})\s?/\s?(\d{1,30})(?![\d/.]|\s*[*/^])")


def plain_characters(text: str) -> str:
    """ASCII and LaTeX for other digits, signs, spaces, vulgar fractions, superscripts and roots."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = "".join(_plain(text[at - 1] if at else "", sign) for at, sign in enumerate(text))
    return _ROOT.sub(lambda found: rf"\sqrt{{{found[1].strip('(){}')}}}", text.translate(_CHARACTERS))


def join_digits(text: str) -> str:
    r"""Thousands without separators, scientific notation and "3 million" written out, repeating decimals
    (0.\overline{36}) as fractions. "(100,200)" stays a pair: commas in brackets separate."""
    text = _REPEATING.sub(_as_fraction, text)
    text = _THOUSANDS.sub(lambda found: _join(text, found), text)
    text = _LARGE.sub(lambda found: f"{Decimal(found[1]).scaleb(_ZEROS[found[2].lower()]):f}", text)
    return _SCIENTIFIC.sub(_write_out, text)


def join_mixed(text: str) -> str:
    """Mixed numbers as sums: "1 1/2" is "(1+1/2)"; "1 3/2" is none and stays."""
    return _MIXED.sub(
        lambda found: f"({found[1]}+{found[2]}/{found[3]})" if int(found[2]) < int(found[3]) else found[0], text
    )


def _plain(before: str, sign: str) -> str:
    """ASCII digit of another script's; 1/2 of its sign, apart from digits before it."""
    if sign.isascii():
        return sign
    if unicodedata.category(sign) == "Nd":
        return str(unicodedata.digit(sign))
    if unicodedata.category(sign) == "No" and _FRACTION_SLASH in (parts := unicodedata.normalize("NFKC", sign)):
        return (" " if before.isdigit() else "") + parts.replace(_FRACTION_SLASH, "/")
    return sign


def _join(text: str, found: re.Match[str]) -> str:
    before, after = text[: found.start()], text[found.end() :]
    if before.rstrip().endswith(("(", "[", r"\{")) and after.lstrip().startswith((")", "]", r"\}")):
        return found[0]
    return re.sub(r"\D", "", found[0])


def _as_fraction(found: re.Match[str]) -> str:
    """The exact value of a repeating decimal."""
    repeated = found["braced"] or found["bare"] or f"{found['first']}{found['middle']}{found['last']}"
    fixed, scale = int(found["whole"] + found["fixed"] or "0"), 10 ** len(found["fixed"])
    value = (fixed + Fraction(int(repeated), 10 ** len(repeated) - 1)) / scale
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)


def _write_out(found: re.Match[str]) -> str:
    exponent = int(next(part for part in found.group("e", "braced", "round", "bare") if part is not None)[:6])
    if abs(exponent) > _LARGEST_EXPONENT:
        return found[0]
    return f"{Decimal(found['digits']).scaleb(exponent):f}"
