"""The colours of the reader, for a light and a dark page. Every background lets the theme's text be read: a contrast of
4.5 at least (WCAG 2.2, 1.4.3), which the tests compute. Ramps are even steps in Oklab and differ in lightness too, so
that no kind of colour blindness merges their steps; rules differ in their lines' style besides."""

from dataclasses import dataclass

SEQUENTIAL_STEPS = 9
DIVERGING_STEPS = 4
"""On either side of the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Hexadecimal colours of one theme."""

    surface: str
    text: str
    quiet: str
    """Text of less weight."""
    line: str
    """Borders that only decorate."""
    control: str
    """Borders of what can be operated: 3 to 1 at least (WCAG 2.2, 1.4.11)."""
    sequential: tuple[str, ...]
    """From nothing to the most."""
    below: tuple[str, ...]
    above: tuple[str, ...]
    """From the middle, without it, to the ends of a diverging ramp."""
    rules: dict[str, tuple[str, str]]
    """(background, line) by `RULE_CLASSES`."""


RULE_CLASSES = {
    "clip_low": "clip-low",
    "clip_high": "clip-high",
    "dual": "dual clip",
    "dppo": "DPPO's clip",
    "limits": "weight limited",
    "masks": "dropped",
    "adds": "loss added",
    "saturated": "no gradient: ratio overflows",
}
"""Classes of a token that a rule acted on, by what they are called; the rules that clip have one each."""

RULE_LINES = {
    "clip_low": "solid",
    "clip_high": "double",
    "dual": "dashed",
    "dppo": "dotted",
    "limits": "dashed",
    "masks": "dotted",
    "adds": "double",
    "saturated": "dashed",
}
"""Style of the line below a token of the class, as CSS names it: not by colour alone (WCAG 2.2, 1.4.1)."""

READER_LIGHT = Theme(
    surface="#ffffff",
    text="#16181c",
    quiet="#555a61",
    line="#e3e6ea",
    control="#82888f",
    sequential=(
        *("#ffffff", "#faf9dc", "#f6f3b8", "#cae8b4", "#9bdcb0", "#77cac1", "#4fb7cf", "#55a8d8"),
        "#5a98e0",
    ),
    below=("#d7e8fb", "#b0d0f7", "#88b8f1", "#5fa0ea"),
    above=("#fde6d2", "#facea5", "#f6b475", "#f09a3c"),
    rules={
        "clip_low": ("#b9d9f2", "#0072b2"),
        "clip_high": ("#ffc9a3", "#b04a00"),
        "dual": ("#a8e0cb", "#007a59"),
        "dppo": ("#f0c8e0", "#a0457a"),
        "limits": ("#ffe2a0", "#8a5f00"),
        "masks": ("#d9dce0", "#555a61"),
        "adds": ("#cdeeff", "#1a7296"),
        "saturated": ("#f7f0a0", "#6f6800"),
    },
)
READER_DARK = Theme(
    surface="#1b1f24",
    text="#f1f3f5",
    quiet="#b3b9c1",
    line="#33373d",
    control="#858c95",
    sequential=(
        *("#1b1f24", "#26243b", "#332757", "#37306f", "#363e88", "#304e98", "#215f91", "#1d6d81"),
        "#227a6d",
    ),
    below=("#202f43", "#224168", "#22538f", "#1f66b8"),
    above=("#3a2a23", "#5b3722", "#7d431b", "#a14f06"),
    rules={
        "clip_low": ("#12476e", "#6fbdf0"),
        "clip_high": ("#7a3306", "#ff9c5c"),
        "dual": ("#0d5440", "#4fd6ac"),
        "dppo": ("#692a50", "#ef9fca"),
        "limits": ("#5e4300", "#ffc44d"),
        "masks": ("#44484f", "#b3b9c1"),
        "adds": ("#1f4f66", "#86d4f7"),
        "saturated": ("#514c00", "#ece36a"),
    },
)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "#rrggbb"."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """WCAG's contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
