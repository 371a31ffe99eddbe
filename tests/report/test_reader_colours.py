"""The reader's colours: text on every background has WCAG AA's contrast, and no colour blindness merges a ramp."""

import itertools

import numpy as np
import pytest

from megarl.report.reader_colours import (
    DIVERGING_STEPS,
    READER_DARK,
    READER_LIGHT,
    RULE_CLASSES,
    RULE_LINES,
    SEQUENTIAL_STEPS,
    Theme,
    contrast,
)

TEXT, CONTROL = 4.5, 3.0
"""WCAG 2.2's least contrast of text (1.4.3) and of what can be operated or must be told apart (1.4.11)."""
# Of linear RGB, at full severity: Machado, Oliveira, Fernandes (2009), table 1.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Björn Ottosson's, from linear RGB: lightness differences as they are seen.
TO_LMS = [[0.412221, 0.536333, 0.051446], [0.211903, 0.680700, 0.107397], [0.088302, 0.281719, 0.629979]]
TO_LAB = [[0.210454, 0.793618, -0.004072], [1.977998, -2.428592, 0.450594], [0.025904, 0.782772, -0.808676]]

themes = pytest.mark.parametrize("theme", [READER_LIGHT, READER_DARK], ids=["light", "dark"])


def oklab(colour: str, blindness: str) -> np.ndarray:
    """Lightness from 0 to 1 and two hues, as one with this blindness sees the colour."""
    channels = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    return np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ seen)


def ramps(theme: Theme) -> list[list[str]]:
    middle = theme.surface
    return [list(theme.sequential), [middle, *theme.below], [middle, *theme.above]]


def test_contrast_is_wcag_s() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@themes
def test_text_can_be_read_on_every_tint(theme: Theme) -> None:
    backgrounds = [*itertools.chain(*ramps(theme)), *(background for background, _ in theme.rules.values())]
    assert min(contrast(theme.text, colour) for colour in backgrounds) >= TEXT
    assert contrast(theme.quiet, theme.surface) >= TEXT
    assert contrast(theme.control, theme.surface) >= CONTROL


@themes
def test_a_rule_s_line_stands_out_from_the_page_and_from_its_own_tint(theme: Theme) -> None:
    assert list(theme.rules) == list(RULE_CLASSES) == list(RULE_LINES)
    for background, line in theme.rules.values():
        assert contrast(line, theme.surface) >= CONTROL
        assert contrast(line, background) >= CONTROL


@themes
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_no_blindness_merges_a_ramp_s_steps_or_its_sides(theme: Theme, blindness: str) -> None:
    assert (len(theme.sequential), len(theme.below), len(theme.above)) == (
        SEQUENTIAL_STEPS,
        DIVERGING_STEPS,
        DIVERGING_STEPS,
    )
    for ramp in ramps(theme):
        seen = [oklab(colour, blindness) for colour in ramp]
        # A step of 0.02 is about what is just seen side by side.
        assert min(np.linalg.norm(b - a) for a, b in itertools.pairwise(seen)) > 0.02
        lightness = np.diff([one[0] for one in seen])
        assert (lightness < 0).all() or (lightness > 0).all()
    below, above = ([oklab(colour, blindness) for colour in side] for side in (theme.below, theme.above))
    assert min(np.linalg.norm(b - a) for a, b in zip(below[1:], above[1:], strict=True)) > 0.06
