"""The page of several runs: its numbers are those of their files, what differs comes first, nothing is fetched."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from megarl.report.colours import DARK, LIGHT
from megarl.report.compared import CLIPPING, EFFECTS, LEARNING, SAMPLES, SPEED
from megarl.report.describe import describe, tabulate
from megarl.report.drawing import draw_figure
from megarl.report.figure import Bar, BarFigure, Line, LineFigure
from megarl.report.groups import group_runs
from megarl.report.many import Chosen, choose_cells, read_comparison, write_comparison
from megarl.report.predicted import scatter_figure
from megarl.report.run_data import read_run
from megarl.report.sheet import PAGE
from megarl.telemetry.names import DESCRIPTIONS
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.ablation.directories import begin_run, make_directory, make_plan
from tests.report.page_numbers import PageReader, figures_of, line_of
from tests.report.run_files import entropy_at, write_run, write_traced
from tests.telemetry.runs import make_config

WIDE, NARROW = "clip.high=0.4", "clip.high=0.2"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three seeds of a narrow clip, one of a wide one."""
    parent = tmp_path_factory.mktemp("runs")
    runs = [write_run(parent, high=0.2, seed=seed, steps=6 + seed) for seed in (0, 1, 2)]
    runs.append(write_run(parent, high=0.4, seed=0))
    write_traced(runs[0], 1, [0.5, 1.0, 1.0, 2.0], [1.0, 1.0, -1.0, -1.0])
    path = parent / "page.html"
    assert write_comparison(read_comparison(Chosen(title="4 runs", runs=tuple(runs))), path) == []
    return path.read_text()


def test_the_lines_are_the_numbers_of_the_metrics(page: str) -> None:
    figure = figures_of(page)["entropy"]
    single = line_of(figure, f"{NARROW}, seed 1")
    assert single["x"] == [1, 2, 3, 4, 5, 6, 7]
    assert single["y"] == pytest.approx([entropy_at(0.2, 1, step) for step in range(1, 8)], rel=1e-5)
    assert line_of(figure, WIDE)["y"] == pytest.approx([entropy_at(0.4, 0, step) for step in range(1, 7)], rel=1e-5)


def test_the_mean_over_seeds_has_its_interval_and_its_n(page: str) -> None:
    mean = line_of(figures_of(page)["entropy"], f"{NARROW}, mean of 3")
    assert mean["x"] == [1, 2, 3, 4, 5, 6]  # what all three have
    middle = np.array([entropy_at(0.2, 1, step) for step in range(1, 7)])
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert mean["y"] == pytest.approx(middle, rel=1e-5)
    assert mean["low"] == pytest.approx(middle - half, rel=1e-4)
    assert mean["high"] == pytest.approx(middle + half, rel=1e-4)
    assert f"{NARROW} (n = 3)" in page
    assert f"{WIDE} (n = 1)" in page


def test_a_missing_value_is_null_and_a_gap(page: str) -> None:
    line = line_of(figures_of(page)["reward"], WIDE)
    assert line["y"] == [0.5, 0.5, None, 0.5, 0.5, 0.5]
    figure = re.search(r"id='figure-reward'.*?</figure>", page, re.S)
    assert figure is not None
    (path,) = re.findall(r"class='mean g1' fill='none' [^>]*stroke-linecap='butt'[^>]* d='([^']*)'", figure[0])
    assert path.count("M") == 2


def test_evaluations_over_the_steps_and_over_k(page: str) -> None:
    figures = figures_of(page)
    over_steps = line_of(figures["held_mean"], WIDE)
    assert (over_steps["x"], over_steps["y"]) == ([0, 6], pytest.approx([10, 20]))
    assert line_of(figures["held_pass"], WIDE)["y"] == pytest.approx([20, 40])
    over_k = line_of(figures["held_pass_at_k"], WIDE)
    assert (over_k["x"], over_k["y"]) == ([1, 2, 3, 4], pytest.approx([25, 30, 35, 40]))
    assert over_k["low"] == pytest.approx([20] * 4)  # over problems, as it is one run
    mean = line_of(figures["held_pass_at_k"], f"{NARROW}, mean of 3")
    assert mean["y"] == pytest.approx([21 * (1 + k / 4) for k in (1, 2, 3, 4)])
    assert mean["low"][0] == pytest.approx(1.25 * (21 - 4.302653 / np.sqrt(3)), rel=1e-4)


def test_histograms_are_of_the_traced_tokens(page: str) -> None:
    figures = figures_of(page)
    positive = line_of(figures["ratio_positive"], f"{NARROW}: 2 tokens")
    assert [value for value in positive["y"] if value] == [50, 50]
    assert (positive["x"][0], positive["x"][-1]) == pytest.approx((0.5 / 1.02, 1.02), rel=1e-5)
    negative = line_of(figures["ratio_negative"], f"{NARROW}: 2 tokens")
    assert (negative["x"][0], negative["x"][-1]) == pytest.approx((1 / 1.02, 2.04), rel=1e-5)
    assert sum(value or 0 for value in line_of(figures["advantages"], f"{NARROW}: 4 tokens")["y"]) == 100
    assert "traced tokens of 1 of 1 rollout files" in page


def test_seconds_by_phase_are_means_over_steps_and_runs(page: str) -> None:
    figure = figures_of(page)["time_by_phase"]
    # Updates take 6, 7 and 8 s of the three seeds' 10 s: 7 in the mean, 3 of them unaccounted for.
    assert [line["y"] for line in figure["lines"]] == [[7, 3], [6, 4]]


def test_what_differs_comes_first_and_is_all_that_differs(page: str) -> None:
    reader = PageReader(page)
    assert reader.rows[0] == ["field", NARROW, WIDE]
    assert reader.rows[1:4] == [
        ["objective.clip.high", "0.2", "0.4"],
        ["train.seed", "0, 1, 2", "0"],
        ["runs", "3", "1"],
    ]
    assert page.index("What differs") < page.index("<figure")


def test_a_group_has_one_look_in_all_figures_and_one_switch(page: str) -> None:
    reader = PageReader(page)
    switches = [attributes["id"] for tag, attributes in reader.tags if tag == "input" and attributes["id"][0] == "g"]
    assert switches == ["g0", "g1"]
    for group in ("g0", "g1"):
        assert f"body:has(#{group}:not(:checked)) .{group} {{ display: none; }}" in page
        looks = {
            (found["stroke"], found.get("stroke-dasharray"))
            for tag, found in reader.tags
            if tag == "path" and {"mean", group} <= set(found.get("class", "").split()) and "stroke" in found
            if found["stroke-linecap"] == "butt"
        }
        assert len(looks) == 1, looks


def test_every_figure_says_its_numbers_in_words_and_has_a_table(page: str) -> None:
    reader = PageReader(page)
    drawn = [attributes for tag, attributes in reader.tags if tag == "svg" and "role" in attributes]
    assert len(drawn) == len(figures_of(page)) > 10
    entropy = next(found["aria-label"] for found in drawn if found["aria-label"].startswith("Policy entropy,"))
    first, last = entropy_at(0.4, 0, 1), entropy_at(0.4, 0, 6)
    assert f"{WIDE}: {first:.4g} at 1, {last:.4g} at 6" in entropy
    assert f"{NARROW}, mean of 3:" in entropy
    assert page.count("<details><summary aria-label='Data of ") == len(drawn)
    steps = [row for row in reader.rows if len(row) > 4 and row[:2] == ["1", f"{entropy_at(0.2, 1, 1):.4g}"]]
    assert steps[0][-1] == f"{entropy_at(0.4, 0, 1):.4g}"


def test_the_page_is_for_light_and_dark_and_fetches_nothing(page: str) -> None:
    dark = page[page.index("@media (prefers-color-scheme: dark)") :]
    for name in LIGHT:
        assert f"--{name}: {LIGHT[name]};" in page
        assert f"--{name}: {DARK[name]};" in dark
    drawn = re.findall(r"<svg xmlns.*?</svg>", page, re.S)
    assert all(not re.search(r"(?:fill|stroke)='#", svg) for svg in drawn)
    reader = PageReader(page)
    assert [found for _, found in reader.tags if {"src", "href"} & set(found)] == []
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert set(re.findall(r"https?://[^'\"\s<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_prediction_and_measurement_meet_step_by_step(tmp_path: Path) -> None:
    run = write_run(tmp_path, high=0.2, seed=0)
    train = read_run(run).config["train"]
    per_step = train["prompts_per_step"] * train["samples_per_prompt"] // train["mini_batch_responses"]
    # All updates of step 1, all but one of step 2, and a line that is still being written.
    budgets = [(1, 3.0), (1, -1.0), *[(1, 0.0)] * (per_step - 2), *[(2, 7.0)] * (per_step - 1)]
    lines = [f'{{"step": {step}, "actor/lr": 0.5, "entropy/budget": {budget}}}\n' for step, budget in budgets]
    run.updates_path.write_text("".join(lines) + '{"step": 2, "ac\n' + '{"step": 2, "actor/l')
    read = read_run(run)
    figure = scatter_figure(group_runs([read]))
    assert figure is not None
    assert read.problems == [
        f'updates.jsonl, line {2 * per_step}: expected a JSON object with a "step"; left out',
    ]
    (cloud,) = figure.clouds
    predicted = np.array([0.5 * 2.0, *(-0.5 * per_step * step for step in (2, 3, 4, 5))])
    measured = np.diff([entropy_at(0.2, 0, step) for step in range(1, 7)])
    factor = np.sqrt((measured**2).mean() / (predicted**2).mean())
    np.testing.assert_allclose(cloud.x, factor * predicted)
    np.testing.assert_allclose(cloud.y, measured)
    assert cloud.correlation == pytest.approx(np.corrcoef(predicted, measured)[0, 1])
    assert f"correlation {cloud.correlation:+.2f} over 5 steps" in cloud.label


def test_runs_of_different_verbs_are_refused(tmp_path: Path) -> None:
    runs = (write_run(tmp_path, high=0.2, seed=0), write_run(tmp_path, high=0.2, seed=1, verb="sft"))
    with pytest.raises(ValueError, match=r"different verbs .* is of `megarl sft`, .* is of `megarl train`"):
        read_comparison(Chosen(title="", runs=runs))


def test_damage_and_a_run_without_a_step_are_said_and_cost_nothing(tmp_path: Path) -> None:
    whole = write_run(tmp_path, high=0.2, seed=0)
    with whole.metrics_path.open("a") as file:
        file.write("\0\0\n")
    whole.updates_path.write_text("[]\n")
    begun = RunDirectory.create(make_config(tmp_path, train={"seed": 4}), source=None, verb="train")
    begun.write_state(RunState(status="failed", message="no such <model>"))
    path = tmp_path / "page.html"
    problems = write_comparison(read_comparison(Chosen(title="", runs=(whole, begun))), path)
    assert f"{whole.path.name}: metrics.jsonl, line 8: expected a JSON object" in problems[1]
    assert f'{whole.path.name}: updates.jsonl, line 1: expected a JSON object with a "step"; left out' in problems
    assert problems[0] == f"{begun.path.name}: no step has ended yet, so it is in no figure"
    html = path.read_text()
    assert len(figures_of(html)["entropy"]["lines"]) == 1
    assert "failed: no such &lt;model&gt;" in html


def test_an_ablation_s_cells_are_compared_by_its_settings(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, make_plan())
    plan = directory.plan()
    for cell in plan.cells[:3]:
        begin_run(directory, cell, RunState(status="finished", step=1)).metrics_path.write_text(
            '{"step": 1, "actor/entropy": 0.5}\n'
        )
    chosen = choose_cells(directory)
    assert (chosen.title, chosen.notes) == ("clip", (f"not begun: {plan.cells[3].name}",))
    groups = read_comparison(chosen).groups
    assert [(group.label, len(group.runs)) for group in groups] == [("low0.2", 2), ("dapo", 1)]


def test_words_and_table_of_many_lines_are_short() -> None:
    x = np.arange(3.0)
    lines = tuple(Line(label=f"line {number}", x=x, y=x + number, colour="blue") for number in range(40))
    figure = LineFigure(key="k", title="T", subtitle="s", x_title="step", y_title="y", lines=lines)
    assert describe(figure).endswith("And 34 more in the table.")
    table = tabulate(figure)
    assert table.heads == ["", "first", "last", "smallest", "at", "largest", "at"]
    assert table.rows[39] == ["line 39", "39", "41", "39", "0", "41", "2"]


def test_a_bar_of_a_long_label_is_cut_not_drawn_over() -> None:
    bars = (Bar(label="x" * 200, values=(1.0, 2.0)),)
    figure = BarFigure(
        key="k", title="T", subtitle="s", x_title="s", y_title="", parts=(("a", "blue"), ("b", "grey")), bars=bars
    )
    drawing = draw_figure(figure, PAGE)
    assert drawing.box.left < 0.5 * PAGE.width
    assert f">{'x' * 200}<" not in drawing.svg


def test_what_is_compared_is_logged() -> None:
    compared = [what for section in (LEARNING, CLIPPING, EFFECTS, SAMPLES, SPEED) for what in section.figures]
    assert {what.metric for what in compared} <= set(DESCRIPTIONS)
    assert len({what.key for what in compared}) == len(compared)


def test_single_runs_keep_their_seeds_where_one_has_no_value(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, high=0.2, seed=seed) for seed in (0, 1, 2)]
    rows = [json.loads(line) for line in runs[0].metrics_path.read_text().splitlines()]
    for row in rows:
        row.pop("actor/entropy", None)
    runs[0].metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(runs[0].evaluations)
    page = tmp_path / "page.html"
    write_comparison(read_comparison(Chosen(title="3 runs", runs=tuple(runs))), page)
    figures = figures_of(page.read_text())
    singles = [line["label"] for line in figures["entropy"]["lines"]]
    assert [label.rpartition(", ")[2] for label in singles] == ["mean of 2", "seed 1", "seed 2"]
    curves = [line["label"] for line in figures["held_pass_at_k"]["lines"]]
    assert [label.rpartition(", ")[2] for label in curves] == ["mean of 2", "seed 1", "seed 2"]
