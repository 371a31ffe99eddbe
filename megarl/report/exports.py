"""Figures as files: SVG as it is drawn, PNG and PDF of it by vl-convert (resvg)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megarl.report.describe import describe
from megarl.report.drawing import draw_figure
from megarl.report.figure import AnyFigure
from megarl.report.sheet import PICTURE, Format
from megarl.telemetry.atomic_file import replace_atomically, write_text_atomically

FileFormat = Literal["png", "svg", "pdf"]
Width = Literal["single", "double"]

_PNG_SCALE = 2.0
"""Pixels per point: sharp on a high-density screen and in print."""
_POINTS = 72.0
"""In an inch."""
_PRINT_PPI = 300.0
_FONT = 8.0
"""Points of all text in a paper's figure."""
_INCHES = {"single": 3.25, "double": 6.75}
"""Of a paper's column, and of both with the space between them."""


def draw_picture(figure: AnyFigure) -> str:
    """For a screen, with title and key."""
    return draw_figure(figure, PICTURE, label=describe(figure)).svg


def draw_for_paper(figure: AnyFigure, width: Width) -> str:
    """As wide as a column, text of 8 points, with title and key."""
    inches = _INCHES[width]
    size = inches * _POINTS
    form = Format(
        width=size,
        height=0.6 * size if width == "single" else 0.4 * size,
        font=_FONT,
        small=1.0,
        large=1.0,
        unit="in",
        per_unit=_POINTS,
        titled=True,
    )
    return draw_figure(figure, form, label=describe(figure)).svg


def write_figure(figure: AnyFigure, path: Path, *, file_format: FileFormat, width: Width) -> None:
    """One figure for a paper."""
    svg = draw_for_paper(figure, width)
    if file_format == "svg":
        write_text_atomically(path, svg)
        return
    import vl_convert

    if file_format == "png":
        data = vl_convert.svg_to_png(_in_points(svg), ppi=_PRINT_PPI)
    else:
        data = vl_convert.svg_to_pdf(_in_points(svg))
    with replace_atomically(path) as partial:
        partial.write_bytes(data)


def write_png(svg: str, path: Path) -> Path:
    """Draw the SVG text of a figure into a PNG file; returns its path."""
    import vl_convert

    with replace_atomically(path) as partial:
        partial.write_bytes(vl_convert.svg_to_png(svg, scale=_PNG_SCALE))
    return path


def overview_svg(svgs: Sequence[str]) -> str:
    """All pictures of a run on one, three in a row."""
    sizes = [tuple(map(float, re.search(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", svg).groups())) for svg in svgs]  # type: ignore[union-attr]
    gap, columns = 28.0, 3
    parts, top = [], gap
    for start in range(0, len(svgs), columns):
        row = list(zip(svgs[start : start + columns], sizes[start : start + columns], strict=True))
        for column, (svg, (width, _)) in enumerate(row):
            parts.append(svg.replace("<svg ", f"<svg x='{gap + column * (width + gap):.1f}' y='{top:.1f}' ", 1))
        top += max(size[1] for _, size in row) + gap
    width = gap + min(columns, len(svgs)) * (sizes[0][0] + gap)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{top:.0f}' "
        f"viewBox='0 0 {width:.0f} {top:.0f}'><rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>"
    )


def _in_points(svg: str) -> str:
    """The drawing with its size in points, which is what vl-convert counts in and the view box is in."""
    return re.sub(r" (width|height)='[\d.]+in'", "", svg, count=2)
