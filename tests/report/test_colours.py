"""The colours of figures: told from their ground, and from each other by every eye."""

import itertools
import re

import numpy as np
import pytest

from megarl.report.colours import CYCLE, DARK, DASHES, LIGHT
from megarl.report.panels import PANELS, HeatPanel
from megarl.report.reader_colours import contrast
from megarl.report.templates import render_template
from tests.report.test_reader_colours import BLINDNESS, oklab

palettes = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
LINES = {*CYCLE, *(series.colour for panel in PANELS if not isinstance(panel, HeatPanel) for series in panel.series)}


@palettes
def test_what_is_drawn_is_told_from_its_ground_and_text_can_be_read(palette: dict[str, str]) -> None:
    drawn = {name for name in LINES if not name.endswith("tint")}
    assert [name for name in drawn if contrast(palette[name], palette["card"]) < 3] == []
    for ground in ("card", "page"):
        assert contrast(palette["ink"], palette[ground]) >= 7
        assert contrast(palette["muted"], palette[ground]) >= 4.5
        assert contrast(palette["blue"], palette[ground]) >= 4.5  # links


@palettes
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_no_blindness_merges_two_groups(palette: dict[str, str], blindness: str) -> None:
    for one, other in itertools.combinations(CYCLE, 2):
        apart = np.linalg.norm(oklab(palette[one], blindness) - oklab(palette[other], blindness))
        assert apart > 0.045, (one, other)  # more than twice of what is just seen side by side
    assert len(DASHES) == len(set(DASHES)) == 5


def test_both_palettes_have_the_same_names_and_are_in_the_page() -> None:
    assert LIGHT.keys() == DARK.keys()
    css = render_template("page.css")
    assert set(re.findall(r"--([\w-]+):", css)) == LIGHT.keys()
    used = set(re.findall(r"var\(--([\w-]+)\)", css + render_template("figures.css")))
    assert used <= LIGHT.keys()
