"""Templates: what they escape, what they refuse, and that an installed package has them."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from jinja2 import TemplateNotFound, UndefinedError
from markupsafe import Markup

import megarl
from megarl.report.describe import Table
from megarl.report.drawing import draw_figure
from megarl.report.figure import Line, LineFigure
from megarl.report.keys import Entry
from megarl.report.page import ReportFacts, format_report
from megarl.report.page_data import dump, figure_json
from megarl.report.plots import Plot, PlotSection
from megarl.report.sheet import PAGE
from megarl.report.templates import render_template
from tests.report.run_rows import data_of

ROOT = Path(megarl.__file__).parents[1]
HOSTILE = "<script>alert('1')</script> & \"x\""
ESCAPED = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;x&#34;"

ENTRY = Entry(HOSTILE, "blue", "line")
TABLE = Table([HOSTILE], [[HOSTILE]], HOSTILE)


def test_every_text_of_the_page_is_escaped() -> None:
    facts = ReportFacts(
        name=HOSTILE,
        status=HOSTILE,
        message=HOSTILE,
        versions={"host": HOSTILE},
        config_toml=HOSTILE,
        tokens_problem=HOSTILE,
        problems=[HOSTILE],
    )
    rows: list[dict[str, float | None]] = [{"step": 1, HOSTILE: 1.0}]
    plot = Plot(key="key", title=HOSTILE, subtitle=HOSTILE, entries=[ENTRY], svg=Markup("<svg/>"), table=TABLE)
    sections = [PlotSection(title=HOSTILE, plots=[plot])]
    html = format_report(data_of(rows), sections, Markup("{}"), facts)
    # Name twice, status twice, message, problem, tokens, configuration, metric, and the host at the head; of the figure
    # its section, its title four times, subtitle, key, and the table's head, cell and note.
    assert html.count(ESCAPED) == 10 + 10
    assert html.count("alert") == 21  # in versions.json it is JSON first: \\"x\\"
    assert html.count("<script") == 2


def test_numbers_of_a_figure_cannot_end_their_element() -> None:
    line = Line(label="</script><b>", x=np.array([1.0]), y=np.array([0.5]), colour="blue")
    figure = LineFigure(key="k", title="", subtitle="", x_title="", y_title="", lines=(line,))
    text = dump({"k": figure_json(figure, draw_figure(figure, PAGE))})
    assert "<" not in text
    assert json.loads(text)["figures"]["k"]["lines"][0]["label"] == "</script><b>"


class Lines:
    """As `TheoryText`, with nothing to say."""

    says = does_not_say = ()


def test_a_value_that_a_template_misses_is_an_error_and_not_a_gap() -> None:
    with pytest.raises(UndefinedError, match="'tables' is undefined"):
        render_template("theory.html", package="megarl.theory", figures=[], versions="", text=Lines())
    with pytest.raises(TemplateNotFound, match=r"theory\.html"):
        render_template("theory.html")


def test_a_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    """Else a page is drawn from a checkout, and not where megarl was installed."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "megarl", source / "megarl", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("megarl/")}
    files = {str(path.relative_to(source)) for path in (source / "megarl").rglob("*") if path.is_file()}
    assert "megarl/report/templates/page.html" in held
    assert held == files
