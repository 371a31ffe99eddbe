"""Numbers as the documents say them, and verdicts that intervals decide."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from megarl.ablation.seeds import SeedMean

Verdict = Literal["reproduced", "contradicted", "mixed", "undecided", "not measured"]
MINUS = "−"
_NONE = "–"


def verdict(estimate: SeedMean | None, sign: int) -> Verdict:
    """Of the claim that a difference has this sign, +1 or -1: decided where the interval excludes 0."""
    if estimate is None:
        return "not measured"
    if not estimate.excludes_zero:
        return "undecided"
    return "reproduced" if estimate.value * sign > 0 else "contradicted"


def overall(verdicts: Sequence[str]) -> Verdict:
    """Of a claim that several differences are about: reproduced or contradicted where all are, mixed where some are
    either, else undecided."""
    known = {one for one in verdicts if one != "not measured"}
    if not known:
        return "not measured"
    if known == {"reproduced"}:
        return "reproduced"
    if {"reproduced", "contradicted"} <= known:
        return "mixed"
    return "contradicted" if known == {"contradicted"} else "undecided"


def signed(value: float | None, digits: int = 3) -> str:
    """ "+0.036"; "–" without a number."""
    if value is None or not math.isfinite(value):
        return _NONE
    text = f"{value:+.{digits}f}"
    return _minus("0" + text[2:] if float(text) == 0 and text[1] == "0" else text)


def plain(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None or not math.isfinite(value) else _minus(f"{value:.{digits}f}")


def short(value: float | None) -> str:
    """Three digits that count: 0.0123, 1.23, 1.2e-5."""
    return _NONE if value is None or not math.isfinite(value) else _minus(f"{value:.3g}")


def estimate(one: SeedMean | None, digits: int = 3, factor: float = 1.0, *, sign: bool = True) -> str:
    """ "+0.036 ± 0.006", bold where the interval excludes 0; without an interval the number and "[1]"."""
    if one is None:
        return _NONE
    text = (signed if sign else plain)(one.value * factor, digits)
    if one.half_width is None:
        return f"{text} [1]"
    text = f"{text} ± {one.half_width * factor:.{digits}f}"
    return f"**{text}**" if sign and one.excludes_zero else text


def mean(one: SeedMean | None, digits: int = 3, factor: float = 1.0) -> str:
    """ "0.746 ± 0.004": a level, of which 0 is no question."""
    return estimate(one, digits, factor, sign=False)


def listed(names: Sequence[Any], last: str = "and") -> str:
    """ "a, b and c"."""
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}" if texts else "none"


def numbered(number: int, noun: str, plural: str | None = None) -> str:
    """ "one seed", "3 seeds"."""
    return f"one {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def hours(seconds: float) -> str:
    """ "2.6 hours", "14 minutes"."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def field(value: Any) -> str:
    """A configuration's value as a table has it."""
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _minus(text: str) -> str:
    return text if "e" in text else text.replace("-", MINUS)  # 5e-05 is a number to be copied


FILTERS: dict[str, Callable[..., str]] = {
    "signed": signed,
    "plain": plain,
    "short": short,
    "estimate": estimate,
    "mean_of_seeds": mean,
    "listed": listed,
    "hours": hours,
    "field": field,
}
