"""Memory by phase: what was measured beside what was planned, for every kind of run; hand-made numbers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megarl.report.drawing import draw_figure
from megarl.report.exports import write_figure
from megarl.report.figure import LineFigure, PairFigure
from megarl.report.figure_sets import run_sections
from megarl.report.figures import write_run_figures
from megarl.report.memory_charts import PlannedMemory, PlannedPhase, memory_figures, no_plan
from megarl.report.problems import Problems
from megarl.report.run_data import RunData, read_run
from megarl.report.sheet import PAGE
from megarl.telemetry.names import MEMORY_PHASES, memory_name
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.telemetry.runs import make_config, make_row, write_metrics

ORDER = ["generate", "sleep", "score", "update", "wake", "publish"]
PLAN = PlannedMemory(
    phases=tuple(PlannedPhase(name=name, policy=float(at), engine=10.0 + at) for at, name in enumerate(ORDER))
)
TURNS = {"colocate": True, "gpus_per_node": 2}
BAR = r"<rect x='[\d.]+' y='([\d.]+)' width='([\d.]+)' height='[\d.]+' fill='var\(--(\w+)\)'"
"""Its top, width and colour."""
asked: list[float | None] = []


def plan(gpu_gib: float | None) -> PlannedMemory:
    asked.append(gpu_gib)
    return PLAN


def memory_rows(kinds: Mapping[str, float], *, phases: Mapping[str, Any] = MEMORY_PHASES) -> list[dict[str, Any]]:
    """Three steps. kinds: GiB of the policy's first phase in the first step; a phase more, a step more: 1 and 0.1 more;
    engines have 20 more."""
    return [
        make_row(step)
        | {
            memory_name(role, phase, kind): size + at + 0.1 * (step - 1) + (20 if role == "engine" else 0)
            for role, of_role in phases.items()
            for at, phase in enumerate(of_role)
            for kind, size in kinds.items()
        }
        for step in (1, 2, 3)
    ]


ON_GPUS = [row | {"memory/gpu_gib": 80.0} for row in memory_rows({"max": 1, "end": 0.5, "gpu_max": 5})]
APART = {"policy": ("generate", "update", "publish"), "engine": ("generate", "publish")}


def make_run(parent: Path, rows: list[dict[str, Any]], *, verb: str = "train", **sections: Any) -> RunData:
    run = RunDirectory.create(make_config(parent, **sections), source=None, verb=verb)
    write_metrics(run.metrics_path, rows)
    run.write_state(RunState(status="finished", step=len(rows)))
    return read_run(run)


def pair_of(run: RunData) -> PairFigure:
    figure = memory_figures(run, plan)[0][0]
    assert isinstance(figure, PairFigure)
    return figure


def test_of_shared_gpus_a_phase_is_a_row(tmp_path: Path) -> None:
    """In it what the fullest GPU had, by whom it was seen: of sleep the engine alone, of score the policy alone."""
    run = make_run(tmp_path, ON_GPUS, cluster=TURNS, parallel={"world_size": 2})
    asked.clear()
    figure = pair_of(run)
    assert asked == [80.0]
    assert [row.label for row in figure.rows] == ORDER
    assert [row.planned for row in figure.rows] == [(float(at), 10.0 + at) for at in range(6)]
    assert figure.rows[0].total == 10.0
    # The engine's generate, sleep, then the policy's score, update, then the engine's wake, publish.
    assert [row.measured for row in figure.rows] == pytest.approx([25.2, 26.2, 6.2, 7.2, 27.2, 28.2])
    assert figure.limit == ("memory of the GPU", 80.0)
    assert memory_figures(run, plan)[1] == ""


def test_of_their_own_gpus_a_role_and_phase_is_a_row(tmp_path: Path) -> None:
    rows = [row | {"memory/gpu_gib": 80.0} for row in memory_rows({"max": 1, "gpu_max": 5}, phases=APART)]
    figure = pair_of(make_run(tmp_path, rows))
    assert {row.label: row.planned for row in figure.rows} == {
        "policy generate": (0.0, 0.0),
        "policy update": (3.0, 0.0),
        "policy publish": (5.0, 0.0),
        "engine generate": (0.0, 10.0),
        "engine publish": (0.0, 15.0),
    }
    assert [row.measured for row in figure.rows] == pytest.approx([5.2, 6.2, 7.2, 25.2, 26.2])


def test_on_a_cpu_it_is_said_what_is_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path, memory_rows({"max": 1, "end": 0.5}), cluster=TURNS, parallel={"world_size": 2})
    asked.clear()
    figures, note = memory_figures(run, plan)
    assert asked == [None]
    assert note.startswith("This run was on a CPU, and megarl plan plans for GPUs. Compared is one process")
    figure, residual = figures
    assert isinstance(figure, PairFigure)
    assert figure.limit is None
    assert len(figure.rows) == 9
    assert figure.rows[2].label == "policy update"
    assert figure.rows[2].measured == pytest.approx(3.2)
    assert isinstance(residual, LineFigure)
    assert {line.label: list(line.y) for line in residual.lines} == {
        "policy, after phase generate": pytest.approx([0.5, 0.6, 0.7]),
        "engine, after phase generate": pytest.approx([20.5, 20.6, 20.7]),
    }


def test_what_sleeping_engines_keep_is_drawn_with_what_they_may(tmp_path: Path) -> None:
    rows = [row | {"memory/asleep_max_gib": 1.5 + 0.1 * at} for at, row in enumerate(ON_GPUS)]
    run = make_run(tmp_path, rows, cluster=TURNS, parallel={"world_size": 2}, rollout={"asleep_gib": 4})
    figure = memory_figures(run, plan)[0][1]
    assert isinstance(figure, LineFigure)
    kept, allowed = figure.lines
    assert list(kept.y) == pytest.approx([1.5, 1.6, 1.7])
    assert (allowed.label, list(allowed.x), list(allowed.y)) == (
        "allowed (rollout.asleep_gib): 4",
        [1.0, 3.0],
        [4.0, 4.0],
    )


def test_a_run_without_it_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, [make_row(1), make_row(2)])
    problems = Problems()
    (section,) = [found for found in run_sections(run, problems, plan) if found.title == "Memory"]
    assert (section.figures, section.note) == (
        (),
        "This run was recorded without its memory by phase, so there is nothing to draw beside the plan.",
    )
    assert problems.lines() == []
    write_run_figures(run.run.path, planner=plan)
    assert section.note in run.run.report_path.read_text()
    for verb in ("sft", "eval"):
        assert memory_figures(make_run(tmp_path, [make_row(1)], verb=verb), plan) == ([], "")


def test_without_a_plan_the_measured_is_drawn_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, ON_GPUS, cluster=TURNS, parallel={"world_size": 2})
    (figure, *_), note = memory_figures(run, no_plan)
    assert note == "There is no plan beside it: none was made."
    assert isinstance(figure, PairFigure)
    assert [row.label for row in figure.rows] == ORDER
    assert all(math.isnan(row.total) and row.measured > 0 for row in figure.rows)
    write_figure(figure, tmp_path / "memory.svg", file_format="svg", width="single")
    assert "vermilion" not in (tmp_path / "memory.svg").read_text()
    assert "#D55E00" in (tmp_path / "memory.svg").read_text()


def test_what_is_drawn_is_in_the_page_and_its_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path, ON_GPUS, cluster=TURNS, parallel={"world_size": 2})
    drawn = write_run_figures(run.run.path, planner=plan)
    assert drawn.problems == []
    assert {"memory_by_phase.png", "memory_residual.png"} <= {path.name for path in drawn.written}
    page = run.run.report_path.read_text()
    assert (
        '"memory_by_phase":{"x":[[0,1,2],[0]],"lines":[{"label":"generate","group":null,"x":0,"y":[0,10,25.2]}' in page
    )
    assert '{"label":"memory of the GPU","group":null,"x":1,"y":[80]}' in page
    assert "generate: planned 10, measured 25.2." in page
    assert "<th scope='row'>update</th><td class='number'>3</td><td class='number'>13</td>" in page


def test_a_bar_is_as_long_as_its_number(tmp_path: Path) -> None:
    """Planned on top, in two parts; below it measured; the limit at its place."""
    run = make_run(tmp_path, ON_GPUS, cluster=TURNS, parallel={"world_size": 2})
    drawing = draw_figure(pair_of(run), PAGE)
    box = drawing.box
    bars = re.findall(BAR, drawing.svg)
    widths = {colour: [float(width) for _, width, name in bars if name == colour] for _, _, colour in bars}
    unit = (box.right - box.left) / 80  # the axis ends at the limit
    assert widths["vermilion"] == pytest.approx([unit * size for size in (25.2, 26.2, 6.2, 7.2, 27.2, 28.2)], abs=0.02)
    assert widths["sky"] == pytest.approx([unit * (10 + at) for at in range(6)], abs=0.02)
    assert widths["blue"] == pytest.approx([unit * at for at in range(1, 6)], abs=0.02), "nothing is drawn of nothing"
    tops = [float(top) for top, _, name in bars if name in ("sky", "vermilion")]
    assert tops == sorted(tops)
    assert f"M{box.right:.1f},{box.top:.1f}V{box.bottom:.1f}" in drawing.svg
