"""Figures and report of real files, looked at as bytes; the smoothing with hand-computed numbers."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megarl.telemetry.charts import build_charts
from megarl.telemetry.figures import write_run_figures
from megarl.telemetry.names import DESCRIPTIONS
from megarl.telemetry.panels import LINE_PANELS
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.smoothing import average_neighbours, moving_mean, moving_window
from tests.telemetry.runs import make_config, make_row, write_metrics

RL_FIGURES = {
    *("reward", "entropy", "clip_fractions", "response_length", "policy_change", "grad_norm", "logp_diff"),
    *("time_by_phase", "overview"),
}


def colours_of(path: Path) -> int:
    """Number of different colours: 1 in a blank picture."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width > 600
        assert image.height > 300
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
        assert colours is not None
        return len(colours)


def drawn_values(chart: Any, series: str) -> list[float | None]:
    """What the longest data set of the specification holds for a series (the other is the points on the line)."""
    datasets = chart.to_dict()["datasets"].values()
    return max(([v["value"] for v in values if v["series"] == series] for values in datasets), key=len)


@pytest.mark.parametrize("steps", [1, 3])
def test_every_figure_of_a_short_run_is_a_picture(tmp_path: Path, steps: int) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [make_row(step) for step in range(1, steps + 1)])
    written = write_run_figures(tmp_path)
    pngs = {path.stem: path for path in written if path.suffix == ".png"}
    assert set(pngs) == RL_FIGURES
    assert all(colours_of(path) > 20 for path in pngs.values())
    assert written[-1] == tmp_path / "report.html"


def test_missing_columns_and_nans_are_left_out_not_drawn_as_zero(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [
        {"step": step, "reward/mean": None if step == 2 else 0.5, "actor/entropy": None} for step in range(1, 9)
    ]
    rows[3].pop("reward/mean")
    charts = build_charts(rows)
    assert set(charts) == {"reward"}
    assert drawn_values(charts["reward"], "per step") == [0.5, None, 0.5, None, 0.5, 0.5, 0.5, 0.5]
    write_metrics(tmp_path / "metrics.jsonl", rows)
    assert {path.name for path in write_run_figures(tmp_path)} == {"reward.png", "overview.png", "report.html"}


def test_a_run_without_figures_still_has_a_report(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "custom": 3.0}])
    assert [path.name for path in write_run_figures(tmp_path)] == ["report.html"]
    assert "custom" in (tmp_path / "report.html").read_text()


def test_an_sft_run_shows_its_loss() -> None:
    rows: list[dict[str, float | None]] = [{"step": s, "sft/loss": 3.0 / s, "actor/grad_norm": 1.0} for s in (1, 2)]
    assert list(build_charts(rows)) == ["loss", "grad_norm"]


def test_shares_are_drawn_in_percent_and_log_axes_skip_zeros() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 1, "clip_ratio/low_mean": 0.25, "rollout/logp_diff_mean": 0.0},
        {"step": 2, "clip_ratio/low_mean": 0.5, "rollout/logp_diff_mean": 0.01},
    ]
    charts = build_charts(rows)
    assert drawn_values(charts["clip_fractions"], "clip-low (A < 0)") == [25.0, 50.0]
    assert drawn_values(charts["logp_diff"], "mean") == [None, 0.01]


class LinkFinder(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_report_is_self_contained_and_escapes_what_it_shows(tmp_path: Path) -> None:
    config = make_config(tmp_path, model={"path": "models/<script>alert(1)</script>"})
    run = RunDirectory.create(config, source=None, verb="train")
    write_metrics(run.metrics_path, [make_row(1), make_row(2) | {"actor/entropy": None}])
    run.write_state(RunState(status="failed", step=2, message="engine 0 <died>"))
    write_run_figures(run.path)
    html = run.report_path.read_text()
    finder = LinkFinder()
    finder.feed(html)
    assert len(finder.links) == 8
    assert all(link.startswith("data:image/svg+xml;base64,") for link in finder.links)
    assert "script" not in finder.tags
    assert "models/&lt;script&gt;" in html
    assert "engine 0 &lt;died&gt;" in html
    assert "<span class='status failed'>failed</span>" in html
    assert "not finite" in html
    assert not re.search(r"url\(|@import", html)


def test_a_run_without_metrics_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        write_run_figures(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(ValueError, match="holds no complete line yet"):
        write_run_figures(tmp_path)


def test_moving_mean_by_hand() -> None:
    assert moving_mean([1.0, 3.0, None, 5.0, 10.0], 2) == [1.0, 2.0, 3.0, 5.0, 7.5]
    assert moving_mean([None, None, 4.0], 2) == [None, None, 4.0]
    assert [moving_window(n) for n in (1, 5, 6, 60, 200)] == [1, 1, 3, 3, 10]


def test_average_neighbours_by_hand() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 1, "a": 1.0, "a_max": 5.0},
        {"step": 2, "a": 3.0, "a_max": 2.0},
        {"step": 3, "a": None, "a_max": 7.0},
    ]
    assert average_neighbours(rows, at_most=2) == [
        {"step": 2, "a": 2.0, "a_max": 5.0},
        {"step": 3, "a": None, "a_max": 7.0},
    ]
    assert average_neighbours(rows, at_most=3) is rows


def test_a_long_run_is_thinned_and_says_so() -> None:
    charts = build_charts([make_row(step) for step in range(1, 1201)])
    assert len(drawn_values(charts["entropy"], "entropy")) == 400
    assert charts["entropy"].title.subtitle.endswith("a point stands for up to 3 steps")


def test_every_drawn_metric_is_documented() -> None:
    assert {series.metric for panel in LINE_PANELS for series in panel.series} <= set(DESCRIPTIONS)
