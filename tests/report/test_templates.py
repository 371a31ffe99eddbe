"""Templates: what they escape, what they refuse, and that an installed package has them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jinja2 import TemplateNotFound, UndefinedError

import megarl
from megarl.report.page import Figure, ReportFacts, format_report
from megarl.report.templates import render_template

ROOT = Path(megarl.__file__).parents[1]
HOSTILE = "<script>alert('1')</script> & \"x\""
ESCAPED = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;x&#34;"


def test_every_text_of_the_page_is_escaped() -> None:
    facts = ReportFacts(
        name=HOSTILE,
        state={"status": HOSTILE, "message": HOSTILE},
        versions={"host": HOSTILE},
        config_toml=HOSTILE,
        tokens_problem=HOSTILE,
        problems=[HOSTILE],
    )
    html = format_report([{"step": 1, HOSTILE: 1.0}], [Figure(title=HOSTILE, svg="<svg/>")], facts)
    # Name twice, status twice, message, problem, tokens, configuration, figure, metric, and the host at the head.
    assert html.count(ESCAPED) == 11
    assert html.count("alert") == 12  # in versions.json it is JSON first: \\"x\\"
    assert "<script" not in html


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
