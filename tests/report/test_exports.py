"""Figures as files for a paper: their size, their text, and that every kind can be drawn."""

import io
import math
import re
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from megarl.report.exports import FileFormat, Width, draw_for_paper, draw_picture, overview_svg, write_figure
from megarl.report.figure import (
    AnyFigure,
    Band,
    Bar,
    BarFigure,
    Cloud,
    HeatFigure,
    Line,
    LineFigure,
    PairFigure,
    PairRow,
    Part,
    ScatterFigure,
    StackFigure,
)

X = np.arange(1.0, 6.0)
TITLES = {"title": "Title <&>", "subtitle": "what it shows, in words that need a second line of a narrow column"}
NAMES = {**TITLES, "x_title": "step", "y_title": "nats"}
LINE = Line(label="one", x=X, y=X**2, low=X**2 - 1, high=X**2 + 1, colour="blue", dash=1, group=0)
FIGURES: list[AnyFigure] = [
    LineFigure(key="lines", lines=(LINE, Line(label="other", x=X, y=-X, colour="green", group=1)), **NAMES),
    LineFigure(key="log", lines=(Line(label="one", x=X, y=10**-X, colour="blue"),), axis="log", x_axis="log", **NAMES),
    StackFigure(key="stack", x=X, starts=X - 0.5, parts=(Part(label="a", values=X - 3, colour="sky"),), **NAMES),
    HeatFigure(
        key="heat",
        x=X,
        starts=X - 0.5,
        bands=(Band(label="b", rows=(Part(label="q", values=X, colour="blue"),), pale="blue-pale", full="blue"),),
        **NAMES,
    ),
    ScatterFigure(
        key="scatter",
        clouds=(Cloud(label="c", x=X, y=-X, colour="purple", correlation=-1.0, num_points=5),),
        **NAMES,
    ),
    BarFigure(key="bars", parts=(("p", "orange"),), bars=(Bar(label="b", values=(3.0,)),), **NAMES),
    PairFigure(
        key="pairs",
        parts=(("p", "blue"), ("q", "sky")),
        measured=("m", "vermilion"),
        rows=(
            PairRow(label="r", planned=(1.0, 2.0), measured=2.5),
            PairRow(label="s", planned=(math.nan, math.nan), measured=1.0),
        ),
        limit=("limit", 4.0),
        **NAMES,
    ),
]
every_figure = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)


@every_figure
@pytest.mark.parametrize(("width", "inches"), [("single", 3.25), ("double", 6.75)])
def test_a_figure_is_as_wide_as_a_column_in_every_format(
    figure: AnyFigure, width: Width, inches: float, tmp_path: Path
) -> None:
    for file_format in get_args(FileFormat):
        write_figure(figure, tmp_path / file_format, file_format=file_format, width=width)
    with Image.open(io.BytesIO((tmp_path / "png").read_bytes())) as image:
        assert image.width == pytest.approx(300 * inches, abs=1)
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert image.convert("RGB").getcolors(maxcolors=20) is None
        edge = image.convert("RGBA").crop((0, 0, 1, 20))  # above all text: the ground reaches to the edge
        assert edge.getcolors() == [(20, (255, 255, 255, 255))]
    pdf = (tmp_path / "pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    found = re.search(rb"/MediaBox \[0 0 ([\d.]+) ", pdf)
    assert found is not None
    assert float(found[1]) == pytest.approx(72 * inches, abs=0.01)
    assert b"/FontFile" in pdf  # its own letters are in it
    assert f"width='{inches}in'" in (tmp_path / "svg").read_text()


@every_figure
def test_a_paper_s_text_has_8_points_and_nothing_refers_to_a_page(figure: AnyFigure) -> None:
    svg = draw_for_paper(figure, "single")
    ElementTree.fromstring(svg)
    assert set(re.findall(r"font-size='([\d.]+)'", svg)) == {"8.0"}
    assert "var(" not in svg
    assert "Title &lt;&amp;&gt;" in svg


@every_figure
def test_nothing_is_drawn_outside_of_the_sheet(figure: AnyFigure) -> None:
    for svg in (draw_picture(figure), draw_for_paper(figure, "single")):
        box = re.search(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", svg)
        assert box is not None
        for x, y in re.findall(r"<text x='([-\d.]+)' y='([-\d.]+)'", svg):
            assert -0.01 <= float(x) <= float(box[1])
            assert 0 < float(y) <= float(box[2])
        for x, y in re.findall(r"M([-\d.]+),([-\d.]+)", svg):
            assert 0 <= float(x) <= float(box[1])
            assert 0 <= float(y) <= float(box[2])


def test_an_overview_has_every_picture_once() -> None:
    svg = overview_svg([draw_picture(figure) for figure in FIGURES])
    ElementTree.fromstring(svg)
    assert svg.count("Title &lt;&amp;&gt;</text>") == len(FIGURES)


def test_a_wide_interval_does_not_flatten_the_lines() -> None:
    line = Line(label="x", x=X, y=X, low=X - 100, high=X + 100, colour="blue")
    svg = draw_picture(LineFigure(key="k", lines=(line,), **NAMES))
    labels = re.findall(r"text-anchor='end'[^>]*>([−\d]+)</text>", svg)
    assert labels == ["0", "2", "4", "6", "8"]
