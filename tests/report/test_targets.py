"""The entropy beside its target: what is held against what, and when there is no such figure."""

import numpy as np

from megarl.report.figure import Line, LineFigure
from megarl.report.groups import group_runs
from megarl.report.run_data import RunData
from megarl.report.targets import target_figure
from tests.report.run_rows import data_of


def run(entropies: list[float], targets: list[float] | None = None) -> RunData:
    rows = [{"step": step, "actor/old_entropy": value} for step, value in enumerate(entropies, start=1)]
    for row, target in zip(rows, targets or [], strict=False):
        row["control/entropy_target"] = target
    return data_of(rows)


def lines_of(figure: LineFigure) -> dict[str, Line]:
    return {line.label: line for line in figure.lines}


def test_a_target_stands_where_the_step_ends_that_it_is_for() -> None:
    steered = run([0.5, 0.6, 0.55], [0.5, 0.45, 0.4])
    figure = target_figure(group_runs([run([0.4, 0.3, 0.2]), steered], ["fixed", "held"]))
    assert figure is not None
    lines = lines_of(figure)
    np.testing.assert_allclose([lines["held"].x, lines["held"].y], [[0, 1, 2], [1.0, 1.2, 1.1]])
    np.testing.assert_allclose([lines["held, target"].x, lines["held, target"].y], [[1, 2, 3], [1.0, 0.9, 0.8]])
    np.testing.assert_allclose(lines["fixed"].y, [1.0, 0.75, 0.5])
    assert "fixed, target" not in lines
    assert [line.label for line in figure.lines if line.guide] == ["held, target"]
    assert lines["held, target"].colour == lines["held"].colour != lines["fixed"].colour


def test_a_target_of_several_seeds_is_their_mean_over_each_one_s_start() -> None:
    runs = [run([0.5, 0.5], [0.5, 0.25]), run([1.0, 0.9], [1.0, 0.5])]
    figure = target_figure(group_runs(runs, ["held", "held"]))
    assert figure is not None
    np.testing.assert_allclose(lines_of(figure)["held, target"].y, [1.0, 0.5])
    np.testing.assert_allclose(lines_of(figure)["held, mean of 2"].y, [1.0, 0.95])


def test_there_is_no_figure_without_a_target() -> None:
    assert target_figure(group_runs([run([0.5, 0.4])], ["fixed"])) is None
    no_start = data_of([{"step": 2, "actor/old_entropy": 0.5, "control/entropy_target": 0.5}])
    assert target_figure(group_runs([no_start], ["late"])) is None
