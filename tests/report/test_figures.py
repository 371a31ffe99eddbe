"""Figures and report of real files, looked at as bytes; the smoothing with hand-computed numbers."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megarl.report.figure import AnyFigure, HeatFigure, Line, LineFigure, StackFigure
from megarl.report.figures import RunFigures, write_run_figures
from megarl.report.scales import value_domain
from megarl.report.single import panel_figures
from megarl.report.smoothing import average_columns, moving_mean, moving_window
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.report.run_rows import data_of
from tests.telemetry.runs import make_config, make_row, write_metrics

RL_FIGURES = {
    *("clip_of_sign", "throughput"),
    *("reward", "entropy", "clip_fractions", "clip_contributions", "clip_differences", "clip_surprisal"),
    *("entropy_budget", "budget_removed", "clip_by_entropy", "regions", "rules"),
    *("bounds", "closed_loop", "entropy_coefficient", "positive_scale", "reference_resets"),
    *("response_length", "policy_change", "grad_norm", "logp_diff", "publication", "time_by_phase", "overview"),
}


def has_colours(path: Path, more_than: int) -> bool:
    """Whether a picture of good size has that many different colours; a blank one has 1."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width > 600
        assert image.height > 300
        return image.convert("RGB").getcolors(maxcolors=more_than) is None


def build(rows: list[dict[str, float | None]]) -> dict[str, AnyFigure]:
    """Every figure of a run that has these rows, by key."""
    return {figure.key: figure for figure in panel_figures(data_of(rows))}


def drawn_values(figure: AnyFigure, label: str) -> list[float | None]:
    """What a line or a part of the figure holds; [] where there is none of that label."""
    if isinstance(figure, LineFigure):
        found = [line.y for line in figure.lines if line.label == label]
    else:
        assert isinstance(figure, StackFigure)
        found = [part.values for part in figure.parts if part.label == label]
    return [None if math.isnan(value) else value for value in found[0].tolist()] if found else []


def value_domain_of(figure: LineFigure) -> list[float]:
    """What the value axis covers at least."""
    every = np.concatenate([line.y for line in figure.lines])
    zero = figure.axis == "from_zero"
    return list(value_domain(every[np.isfinite(every)].tolist(), from_zero=zero, min_span=figure.min_span))


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, RunFigures]:
    """A run of one step with every figure, with texts that a page must escape, and a metric that is not finite."""
    config = make_config(tmp_path_factory.mktemp("drawn"), model={"path": "models/<script>alert(1)</script>"})
    run = RunDirectory.create(config, source=None, verb="train")
    write_metrics(run.metrics_path, [make_row(1) | {"actor/entropy_response_mean": None}])
    run.write_state(RunState(status="failed", step=1, message="engine 0 <died>"))
    return run, write_run_figures(run.path)


def test_every_figure_of_one_step_is_a_picture(drawn_run: tuple[RunDirectory, RunFigures]) -> None:
    run, drawn = drawn_run
    pngs = {path.stem: path for path in drawn.written if path.suffix == ".png"}
    assert set(pngs) == RL_FIGURES
    assert all(has_colours(path, more_than=20) for path in pngs.values())
    assert drawn.written[-1] == run.report_path
    assert drawn.problems == []


def test_missing_columns_and_nans_are_left_out_not_drawn_as_zero(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [
        {"step": step, "reward/mean": None if step == 2 else 0.5, "actor/entropy": None} for step in range(1, 9)
    ]
    rows[3].pop("reward/mean")
    charts = build(rows)
    assert set(charts) == {"reward"}
    assert drawn_values(charts["reward"], "per step") == [0.5, None, 0.5, None, 0.5, 0.5, 0.5, 0.5]
    write_metrics(tmp_path / "metrics.jsonl", rows)
    assert {path.name for path in write_run_figures(tmp_path).written} == {"reward.png", "overview.png", "report.html"}


def test_a_run_without_figures_still_has_a_report(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "custom": 3.0}])
    assert [path.name for path in write_run_figures(tmp_path).written] == ["report.html"]
    assert "custom" in (tmp_path / "report.html").read_text()


def test_an_sft_run_shows_its_loss() -> None:
    rows: list[dict[str, float | None]] = [{"step": s, "sft/loss": 3.0 / s, "actor/grad_norm": 1.0} for s in (1, 2)]
    assert list(build(rows)) == ["loss", "grad_norm"]


def test_shares_are_drawn_in_percent_and_log_axes_skip_zeros() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 1, "clip_ratio/low_mean": 0.25, "rollout/logp_diff_mean": 0.0},
        {"step": 2, "clip_ratio/low_mean": 0.5, "rollout/logp_diff_mean": 0.01},
    ]
    charts = build(rows)
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


def test_report_is_self_contained_and_escapes_what_it_shows(drawn_run: tuple[RunDirectory, RunFigures]) -> None:
    html = drawn_run[0].report_path.read_text()
    finder = LinkFinder()
    finder.feed(html)
    assert finder.links == []
    assert finder.tags.count("svg") >= len(RL_FIGURES) - 1
    assert finder.tags.count("script") == 2  # the figures' numbers, and what reads them out
    assert "default-src 'none'" in html
    assert "models/&lt;script&gt;" in html
    assert "engine 0 &lt;died&gt;" in html
    assert "<span class='status failed'>failed</span>" in html
    assert "not finite" in html
    assert not re.search(r"url\(|@import", html)


def test_what_is_no_run_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl and no state\.json"):
        write_run_figures(tmp_path)


def test_a_run_without_a_whole_step_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    run.write_state(RunState(status="failed", message="no such <model>"))
    assert write_run_figures(run.path).problems == []
    html = run.report_path.read_text()
    assert "no step has ended yet" in html
    assert "no such &lt;model&gt;" in html
    run.metrics_path.write_text('{"step": 1')
    assert write_run_figures(run.path).problems == ["metrics.jsonl, line 1: cut in half, as a killed run leaves it"]


def test_damaged_files_are_left_out_and_said(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    lines = [json.dumps({"step": step, "reward/mean": 0.5}) for step in (1, 2)]
    run.metrics_path.write_text("\n".join([lines[0], "\0\0\0", lines[1], '{"st']))
    run.state_path.write_text("{")
    (run.path / "versions.json").write_text("")
    run.rollouts_path(2).write_bytes(b"PAR1 and no end")
    drawn = write_run_figures(run.path)
    assert {path.name for path in drawn.written} == {"reward.png", "overview.png", "report.html"}
    assert [problem.partition(": ")[0] for problem in drawn.problems] == [
        "metrics.jsonl, line 2",
        "metrics.jsonl, line 4",
        "state.json",
        "versions.json",
        f"the histograms of {run.path.name}",
    ]
    html = run.report_path.read_text()
    assert "step-000002.parquet" in html  # what is wrong with it
    assert all(html.count(f"{name}: ") >= 1 for name in ("state.json", "versions.json"))


class DrawingPanic(BaseException):
    """As a library in Rust raises."""


@pytest.mark.parametrize("error", [ImportError("vl-convert is missing"), DrawingPanic("panicked")])
def test_without_the_drawing_library_there_is_a_page(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vl_convert.svg_to_png", fail)
    write_metrics(tmp_path / "metrics.jsonl", [make_row(1)])
    drawn = write_run_figures(tmp_path)
    assert [path.name for path in drawn.written] == ["report.html"]
    (problem,) = drawn.problems
    assert problem.endswith(f"more: {type(error).__name__}: {error}")
    assert str(error) in (tmp_path / "report.html").read_text()


def test_moving_mean_by_hand() -> None:
    assert moving_mean([1.0, 3.0, None, 5.0, 10.0], 2) == [1.0, 2.0, 3.0, 5.0, 7.5]
    assert moving_mean([None, None, 4.0], 2) == [None, None, 4.0]
    assert [moving_window(n) for n in (1, 5, 6, 60, 200)] == [1, 1, 3, 3, 10]


def test_neighbouring_steps_are_averaged_by_hand() -> None:
    steps, values = np.array([1.0, 2.0, 3.0]), np.array([[1.0, 3.0, np.nan], [5.0, np.nan, 7.0]])
    last, starts, means = average_columns(steps, values, at_most=2)
    assert (last.tolist(), starts.tolist()) == ([2.0, 3.0], [0.5, 2.5])
    np.testing.assert_array_equal(means, [[2.0, np.nan], [5.0, 7.0]])
    assert average_columns(steps, values, at_most=3)[2] is values


def test_bars_of_a_long_run_are_averages_and_say_so() -> None:
    figure = build([make_row(step) for step in range(1, 901)])["entropy_budget"]
    assert isinstance(figure, StackFigure)
    assert (len(figure.x), figure.x[1], figure.starts[1]) == (300, 6, 3.5)
    assert figure.subtitle.endswith("; a bar stands for up to 3 steps")


def test_the_entropy_is_compared_with_its_start() -> None:
    rows: list[dict[str, float | None]] = [{"step": s, "actor/entropy": h} for s, h in ((1, None), (2, 2.0), (3, 0.5))]
    chart = build(rows)["entropy"]
    assert chart.subtitle == "exact; now 25% of step 2's"
    assert drawn_values(chart, "start") == [2.0, 2.0]
    assert build(rows[:2])["entropy"].subtitle == "exact"


def test_a_budget_is_stacked_only_where_it_is_whole() -> None:
    rows = [make_row(1), make_row(2) | {"entropy/budget_negative_kept": None}, make_row(3)]
    figure = build(rows)["entropy_budget"]
    assert isinstance(figure, StackFigure)
    assert figure.total
    assert figure.x.tolist() == [1, 3]
    assert [part.values.tolist() for part in figure.parts] == [[-0.02] * 2, [0.03] * 2, [0.0] * 2, [-0.001] * 2]


def test_quintiles_are_rows_in_percent_from_the_most_uncertain_down() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 4.0, "clip_ratio/low_q5": 0.5, "clip_ratio/low_q1": 0.25},
        {"step": 5.0, "clip_ratio/low_q5": 0.0},
    ]
    figure = build(rows)["clip_by_entropy"]
    assert isinstance(figure, HeatFigure)
    high, low = figure.bands
    assert [part.label for part in low.rows] == [f"low q{q}" for q in (5, 4, 3, 2, 1)]
    np.testing.assert_array_equal(low.rows[0].values, [50, 0])
    np.testing.assert_array_equal(low.rows[4].values, [25, np.nan])
    assert all(np.isnan(part.values).all() for part in high.rows)


def test_effects_on_the_entropy_point_upwards_where_they_raise_it() -> None:
    charts = build([make_row(1), make_row(2)])
    for key in ("clip_contributions", "clip_differences", "clip_surprisal"):
        assert drawn_values(charts[key], "low side, X") == [0.01, 0.02], key
        assert drawn_values(charts[key], "high side, Y (sign turned)") == [-0.01, -0.02], key
    # A budget of -.001 removed on each of three sides: clipping raised the entropy by as much.
    removed = charts["budget_removed"]
    assert isinstance(removed, StackFigure)
    assert [part.values.tolist() for part in removed.parts] == [[0.001, 0.001]] * 3


def test_the_run_s_own_clipping_comes_before_the_theorems() -> None:
    keys = list(build([make_row(1)]))
    order = [keys.index(key) for key in ("clip_fractions", "budget_removed", "clip_contributions")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("values", "axis", "domain"),
    [
        ([0.5, 0.502], "data", [0.491, 0.511]),
        ([0.5, 0.6], "data", [0.5, 0.6]),
        ([0.001, 0.003], "data", [0.0, 0.02]),
        ([-0.003, -0.001], "data", [-0.02, 0.0]),
        ([0.0, 0.0], "from_zero", [0.0, 0.02]),
        ([0.001, 0.003], "from_zero", [0.0, 0.02]),
        ([-0.003, -0.001], "from_zero", [-0.02, 0.0]),
    ],
)
def test_what_barely_moves_is_drawn_flat(values: list[float], axis: Any, domain: list[float]) -> None:
    line = Line(label="x", x=np.arange(len(values)) + 1.0, y=np.array(values), colour="blue")
    figure = LineFigure(key="x", title="", subtitle="", x_title="", y_title="", lines=(line,), axis=axis, min_span=0.02)
    assert value_domain_of(figure) == pytest.approx(domain)


def test_bounds_that_never_move_are_not_drawn_unless_a_schedule_moves_them() -> None:
    # Rounding of a mean is no movement.
    rows = [{"step": step, "clip_bound/low_mean": 0.2 + 1e-9 * step, "clip_bound/high_mean": 0.2} for step in (1, 2, 3)]
    assert build(rows) == {}
    (bounds,) = build([row | {"clip_bound/high_mean": 0.1 * row["step"]} for row in rows]).values()
    assert drawn_values(bounds, "high, token mean") == pytest.approx([0.1, 0.2, 0.3])
    assert drawn_values(bounds, "low, token mean") == []
    (constant,) = build([{"step": 1, "control/flexec_low_at_0.5": 0.2}]).values()
    assert drawn_values(constant, "low(p = 0.5), FlexEC") == [0.2]


def test_the_terms_are_explained_once_where_the_run_uses_them(
    drawn_run: tuple[RunDirectory, RunFigures], tmp_path: Path
) -> None:
    html = drawn_run[0].report_path.read_text()
    for term in ("H", "Q, N", "E1 - E4", "X, Y", "budget"):
        assert html.count(f"<td><b>{term}</b></td>") == 1
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "sft/loss": 2.0, "actor/entropy": 1.0}])
    write_run_figures(tmp_path)
    assert "Terms in the figures" not in (tmp_path / "report.html").read_text()
