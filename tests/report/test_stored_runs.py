"""The runs of a stored table are drawn as those of an ablation's directory are."""

import math
from pathlib import Path

import numpy as np
import pytest

from megarl.report.figure import BarFigure, LineFigure, ScatterFigure
from megarl.report.many import choose_stored, read_comparison, write_comparison
from megarl.report.stored_runs import NOT_STORED
from tests.tools.stored_tables import UPDATES, make_stored, write_table

NAME = "random-reward-products-small"
STEPS = 4


def of_step(setting: str, seed: int, step: int) -> dict[str, float]:
    numbers = {
        "actor/entropy": 1.0 + seed - step / 8,
        "actor/old_entropy": 1.0 + seed - step**2 / 8,
        "timing_s/step": 4.0,
        "reward/mean": math.nan if step == 2 else 0.5,
    }
    if step == STEPS:
        numbers |= {"eval/held/mean@2": 0.25, "eval/held/pass@1": 0.25, "eval/held/pass@2": 0.5 + seed / 4}
    return numbers


def of_update(setting: str, seed: int, step: int, update: int) -> dict[str, float]:
    return {"actor/lr": 0.5, "entropy/budget": -float(step)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path, make_stored(NAME, of_step, of_update, steps=STEPS, seeds=(0, 1)))


def figures(table: Path) -> dict[str, object]:
    comparison = read_comparison(choose_stored(table))
    found = {figure.key: figure for section in comparison.sections() for figure in section.figures}
    assert comparison.problems.lines() == []
    return found


def test_a_setting_is_a_group_with_its_seeds(table: Path) -> None:
    comparison = read_comparison(choose_stored(table))
    assert [(group.label, group.seeds) for group in comparison.groups][:2] == [("none", "0, 1"), ("low0.2", "0, 1")]
    run = comparison.groups[0].runs[1]
    assert (run.name, run.seed, run.verb, run.status, run.step) == ("none-seed1", 1, "train", "finished", STEPS)
    assert run.config["train"]["prompts_per_step"] == 8
    assert comparison.chosen.notes == (NOT_STORED,)


def test_lines_have_the_stored_numbers(table: Path) -> None:
    entropy = figures(table)["entropy"]
    assert isinstance(entropy, LineFigure)
    mean = entropy.lines[0]
    assert (mean.label, mean.x.tolist()) == ("none, mean of 2", [1, 2, 3, 4])
    assert np.allclose(mean.y, [1.5 - step / 8 for step in (1, 2, 3, 4)])
    reward = figures(table)["reward"]
    assert isinstance(reward, LineFigure)
    assert np.isnan(reward.lines[0].y).tolist() == [False, True, False, False]


def test_predictions_are_of_the_stored_updates(table: Path) -> None:
    scatter = figures(table)["predicted_change"]
    assert isinstance(scatter, ScatterFigure)
    cloud = scatter.clouds[0]
    assert cloud.num_points == 2 * (STEPS - 1)
    predicted, measured = cloud.x.reshape(2, -1)[0], cloud.y.reshape(2, -1)[0]
    assert np.allclose(measured, [-(2 * step + 1) / 8 for step in (1, 2, 3)])
    assert np.allclose(predicted / predicted[0], [1, 2, 3])
    assert "predicted_change" not in figures(
        write_table(table.parent / "without", make_stored(NAME, of_step, steps=STEPS, seeds=(0, 1)))
    )
    assert UPDATES == 4


def test_pass_at_k_is_of_the_metrics_without_intervals(table: Path) -> None:
    curve = figures(table)["held_pass_at_k"]
    assert isinstance(curve, LineFigure)
    assert np.allclose(curve.lines[0].y, [25, 62.5])
    ((step, found),) = read_comparison(choose_stored(table)).groups[0].runs[0].evaluations
    assert (step, found["held"]["pass@2"]["value"]) == (STEPS, 0.5)
    assert math.isnan(found["held"]["pass@2"]["low"])


def test_what_is_not_stored_is_not_drawn_but_said(table: Path, tmp_path: Path) -> None:
    found = figures(table)
    assert not any(isinstance(figure, BarFigure) for figure in found.values())  # no phases
    assert not {"ratios", "advantages"} & found.keys()
    page = tmp_path / "page.html"
    assert write_comparison(read_comparison(choose_stored(table)), page) == [NOT_STORED]
    text = page.read_text()
    assert "no rollouts, so no tokens" in text
    assert str(tmp_path) not in text
