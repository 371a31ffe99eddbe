"""The pages of runs in a real Chromium: nothing is fetched or complained of, nothing scrolls sideways, groups can be
switched, and values read by hand and by keyboard."""

from pathlib import Path

import pytest

from megarl.report.figures import write_run_figures
from megarl.report.many import Chosen, read_comparison, write_comparison
from tests.report.browser import Visitor
from tests.report.run_files import entropy_at, write_run, write_traced
from tests.telemetry.runs import make_row, write_metrics

MEMORY = ("policy_generate", "policy_update", "engine_generate", "engine_publish")
schemes = pytest.mark.parametrize("scheme", ["light", "dark"])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    runs = [write_run(parent, high=high, seed=seed) for high in (0.2, 0.4) for seed in (0, 1)]
    write_traced(runs[0], 1, [0.5, 1.0, 1.0, 2.0], [1.0, 1.0, -1.0, -1.0])
    path = parent / "page.html"
    write_comparison(read_comparison(Chosen(title="4 runs", runs=tuple(runs))), path)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"), high=0.2, seed=0)
    memory = {f"memory/{phase}_{kind}_gib": 2.5 for phase in MEMORY for kind in ("max", "end")}
    write_metrics(run.metrics_path, [make_row(step) | memory for step in range(1, 7)])
    write_traced(run, 1, [0.5, 1.0, 1.0, 2.0], [1.0, 1.0, -1.0, -1.0])
    write_run_figures(run.path)
    return run.report_path


@schemes
@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison_fits_its_window_and_is_open_to_all(
    comparison: Path, visit: Visitor, scheme: str, width: int
) -> None:
    opened = visit(comparison, scheme=scheme, width=width)
    assert opened.width_beyond() == 0
    assert opened.serious_violations() == []


@schemes
@pytest.mark.parametrize("width", [360, 1280])
def test_a_run_s_page_fits_its_window_and_is_open_to_all(single: Path, visit: Visitor, scheme: str, width: int) -> None:
    opened = visit(single, scheme=scheme, width=width)
    assert opened.width_beyond() == 0
    assert opened.serious_violations() == []


def test_a_setting_is_switched_off_in_every_figure_and_on_again(comparison: Path, visit: Visitor) -> None:
    page = visit(comparison).page
    shown = "[...document.querySelectorAll('.plot svg .g0')].filter(e => getComputedStyle(e).display !== 'none').length"
    other = shown.replace(".g0", ".g1")
    every, of_other = page.evaluate(shown), page.evaluate(other)
    assert min(every, of_other) > 20
    page.locator("#g0").focus()
    page.keyboard.press("Space")
    assert page.evaluate(shown) == 0
    assert page.evaluate(other) == of_other
    page.locator(".groups button[value=none]").click()
    assert page.evaluate(other) == 0
    page.locator(".groups button[value=all]").click()
    assert page.evaluate(shown) == every


def test_values_are_read_by_keyboard_and_by_hand(comparison: Path, visit: Visitor) -> None:
    page = visit(comparison).page
    figure = page.locator("#figure-entropy")
    figure.locator(".drawn").focus()
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 6), ("ArrowLeft", 5), ("Home", 1)):
        page.keyboard.press(key)
        mean = (entropy_at(0.2, 0, step) + entropy_at(0.2, 1, step)) / 2
        told = figure.locator("output").inner_text()
        assert told.startswith(f"{step}: clip.high=0.2, mean of 2 {float(f'{mean:.4g}'):g} (")
    page.locator("#g0").uncheck()
    box = figure.locator(".drawn svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    assert figure.locator("output").inner_text().startswith("6: clip.high=0.4, mean of 2 ")
    page.mouse.move(0, 0)
    assert figure.locator("output").inner_text() == ""


@schemes
def test_figures_have_the_colours_of_the_page(comparison: Path, visit: Visitor, scheme: str) -> None:
    page = visit(comparison, scheme=scheme).page
    colour = "e => getComputedStyle(document.querySelector(e)).{}"
    ground = page.evaluate(colour.format("backgroundColor"), ".plot")
    line = page.evaluate(colour.format("stroke"), "#figure-entropy .mean.g0[stroke]")
    expected = {"light": ("rgb(255, 255, 255)", "rgb(0, 114, 178)"), "dark": ("rgb(27, 31, 36)", "rgb(75, 163, 227)")}
    assert (ground, line) == expected[scheme]


def test_a_table_lies_behind_every_figure(single: Path, visit: Visitor) -> None:
    page = visit(single).page
    figures = page.locator(".plot")
    assert figures.count() > 20
    for index in range(figures.count()):
        assert figures.nth(index).locator("details tbody tr").count() > 0
    first = figures.nth(0)
    first.locator("summary").click()
    assert first.locator("table").is_visible()
