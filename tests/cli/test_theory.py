"""`megarl theory` as a person runs it: its files, its tables, and what it says to a bad configuration."""

import io
import json
import math
import re
import subprocess
import sys
from datetime import datetime, tzinfo
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from megarl.cli.theory import run_theory
from megarl.config.base import ConfigError
from megarl.config.dump import dump_config
from megarl.config.loader import load_section, load_theory
from megarl.config.theory import TheoryConfig
from megarl.theory.charts import build_theory_charts

ROOT = Path(__file__).parents[2]
SMALL = [
    "pairs.count=40",
    "monte_carlo.states=2000",
    "monte_carlo.clips=[[0.2, inf], [1.0, inf]]",
    "multi_step.rollouts=3",
    "multi_step.seeds=2",
    "multi_step.clips=[[0.1, inf], [1.0, 0.2]]",
]
CHARTS = {
    *("theorem_1", "theorem_2", "remainder", "counterexamples"),
    *("sweep_low", "sweep_high", "sweep_grid", "samples", "training"),
}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(output directory, what was printed) of a small study."""
    directory = tmp_path_factory.mktemp("theory") / "new" / "folder"
    file = io.StringIO()
    assert run_theory(Console(file=file, width=80), load_theory(None, SMALL), directory) == 0
    return directory, file.getvalue()


def test_every_figure_is_written_as_png_and_svg(small_run: tuple[Path, str]) -> None:
    figures = small_run[0] / "figures"
    assert {path.name for path in figures.iterdir()} == {f"{key}{end}" for key in CHARTS for end in (".png", ".svg")}
    for path in figures.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 600
            assert image.convert("RGB").getcolors(maxcolors=20) is None, path  # more than 20


class LinkFinder(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_self_contained(small_run: tuple[Path, str]) -> None:
    html = (small_run[0] / "report.html").read_text(encoding="utf-8")
    finder = LinkFinder()
    finder.feed(html)
    assert len(finder.links) == len(CHARTS)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in finder.links)
    assert not re.search(r"url\(|@import", html)
    assert "What does not follow" in html
    assert "is not a theorem" in html


def test_json_holds_the_numbers_without_infinities(small_run: tuple[Path, str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads((small_run[0] / "theory.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert set(results) == {"steps", "identities", "counterexamples", "sweep", "samples", "training"}
    assert [row["high"] for row in results["samples"]] == ["inf", "inf"]
    orders = [row["order"] for row in results["steps"]["rows"] if row["theorem"] == "Theorem 1"]
    assert orders[0] is None
    assert orders[-1] == pytest.approx(2, abs=0.1)
    falls = next(case for case in results["counterexamples"] if case["name"] == "dominant token falls")
    assert falls["pg_predicted"] == pytest.approx(-2.54751099e-3, abs=1e-10)
    config = TheoryConfig()
    assert len(results["sweep"]["grid"]) == len(config.sweep.low) * len(config.sweep.high)
    off = [row for row in results["sweep"]["rows"] if row["bound"] in ("inf", 1.0) and row["probability"] == 0]
    assert [row["pg_term"] for row in off] == [0, 0]
    assert all(row["pg_positive"] is None for row in off)


def test_identities_hold_and_their_near_misses_do_not(small_run: tuple[Path, str]) -> None:
    results = json.loads((small_run[0] / "theory.json").read_text(encoding="utf-8"))
    expected = {"difference": (0, 1e-12), "order": (1.9, 2.1), "|z|": (0, 4)}
    wrong = {"difference": (1e-3, 1), "order": (0.8, 1.3), "|z|": (10, math.inf)}
    assert [row["measure"] for row in results["identities"]] == [
        "difference",
        "order",
        "difference",
        "difference",
        "|z|",
    ]
    for row in results["identities"]:
        low, high = expected[row["measure"]]
        assert low <= row["value"] <= high, row
        low, high = wrong[row["measure"]]
        assert low <= row["wrong_value"] <= high, row
        assert row["statement"] in small_run[1]


def test_the_written_config_repeats_the_run(small_run: tuple[Path, str]) -> None:
    assert load_section(small_run[0] / "config.toml", (), TheoryConfig) == load_section(None, SMALL, TheoryConfig)


def test_tables_line_up_and_keep_every_number(small_run: tuple[Path, str]) -> None:
    text = small_run[1]
    assert "…" not in text  # nothing is cut off, in 80 columns either
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["bound", "p"])
    rows = list(lines[start + 2 : start + 16])
    assert [row.split()[0] for row in rows] == ["low"] * 7 + ["high"] * 7
    assert len({len(row) for row in rows}) == 1
    ends = [[found.end() for found in re.finditer(r"\S+", row)][2] for row in rows]  # the column "p or q"
    assert len(set(ends)) == 1


def test_a_file_gets_no_control_characters(small_run: tuple[Path, str]) -> None:
    assert "\x1b" not in small_run[1]


def test_a_study_that_is_left_out(tmp_path: Path) -> None:
    file = io.StringIO()
    run_theory(Console(file=file, width=80), load_theory(None, [*SMALL, "multi_step.rollouts=0"]), tmp_path)
    assert not (tmp_path / "figures" / "training.png").exists()
    assert "Whole trainings" not in file.getvalue()


def test_nothing_clipped_is_drawn_and_said(tmp_path: Path) -> None:
    """All bounds off: every change is 0, and no chart or sentence divides by it."""
    off = ["clip.low=1.0", "clip.high=inf", "sweep.low=[1.0]", "sweep.high=[inf]", "multi_step.clips=[[1.0, inf]]"]
    file = io.StringIO()
    assert run_theory(Console(file=file, width=80), load_theory(None, [*SMALL, *off]), tmp_path) == 0
    assert "no token was clipped" in file.getvalue()
    assert "none: no remainder" in file.getvalue()


def test_charts_can_be_made_from_plain_results(small_run: tuple[Path, str]) -> None:
    """What theory.json holds is enough, once its "inf" is a number again."""
    text = (small_run[0] / "theory.json").read_text(encoding="utf-8").replace('"inf"', "Infinity")
    assert set(build_theory_charts(json.loads(text))) == CHARTS


# The command and its configuration


def run_megarl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megarl.cli.main", "theory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def test_an_override_without_a_file_and_the_default_directory(tmp_path: Path) -> None:
    done = run_megarl(*SMALL, "multi_step.rollouts=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"theory-\d{8}T\d{6}Z", directory.name)
    assert f"report   runs/{directory.name}/report.html" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pairs.size=3"], ["overrides: 1 problem", "pairs.size: unknown key", "valid keys of pairs: count"]),
        (["pairs.count=many"], ["pairs.count: expected an integer >= 2", '"many"']),
        (["clip.low=1.5"], ["clip.low: expected a number >= 0 and <= 1", "1.5"]),
        (["learning_rates=[0.1, 0.2]"], ["learning_rates: expected positive numbers that fall"]),
        (["sweep.low=[2.0]"], ["sweep.low: expected numbers in [0, 1]", "found 2"]),
        (["monte_carlo.clips=[[0.2]]"], ["monte_carlo.clips: expected pairs [low, high]", "[0.2]"]),
        (["monte_carlo.states=100000000"], ["1,200,000,000 numbers", "make one of them smaller"]),
        (["multi_step.updates_per_rollout=7"], ["1024 samples are not a multiple of updates_per_rollout 7"]),
        (["nowhere.toml"], ["nowhere.toml: no such file"]),
        (["seed"], ["seed: no such file"]),
    ],
)
def test_bad_configurations(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    done = run_megarl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="cannot be made a directory"):
        run_theory(Console(file=io.StringIO()), load_theory(None, SMALL), tmp_path / "taken")


def test_an_output_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of an earlier study")
    with pytest.raises(ConfigError, match=r"expected an empty or a new directory, found one with report\.html; name"):
        run_theory(Console(file=io.StringIO()), load_theory(None, SMALL), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "of an earlier study"


def test_studies_of_one_second_have_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megarl.cli.theory.datetime", Stopped)
    for _ in range(2):
        run_theory(Console(file=io.StringIO()), load_theory(None, [*SMALL, "multi_step.rollouts=0"]), None)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["theory-20260102T030405Z", "theory-20260102T030405Z-2"]


def test_the_shipped_file_is_the_defaults() -> None:
    config = load_section(ROOT / "configs" / "theory.toml", (), TheoryConfig)
    assert config == TheoryConfig()


def test_the_configuration_dumps_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(dump_config(TheoryConfig()), encoding="utf-8")
    assert load_section(path, (), TheoryConfig) == TheoryConfig()


def test_help_has_examples(tmp_path: Path) -> None:
    done = run_megarl("--help", cwd=tmp_path)
    assert "megarl theory pairs.vocabulary=200" in done.stdout.partition("Examples")[2]
