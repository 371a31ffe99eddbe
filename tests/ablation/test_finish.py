"""table.parquet and summary.json: of finished cells every number, of others why they are left out."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.finish import tabulate
from megarl.cli.ablation_tables import summary_lines
from megarl.evaluation.intervals import estimate, estimate_difference
from tests.ablation.runs_of_cells import add_evaluation, add_run, make_ablation

ENTROPY, REWARD = "actor/entropy_over_start", "reward/mean"


def read_summary(directory: AblationDirectory) -> dict[str, Any]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    found: dict[str, Any] = json.loads(directory.summary_path.read_text(), parse_constant=refuse)
    return found


def rows_of(directory: AblationDirectory) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(directory.table_path).to_pylist()
    return found


def setting_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in summary["settings"] if one["name"] == name)
    return dict(found)


def test_the_table_has_every_number_of_every_run(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a", "b"], seeds=[3])
    add_run(directory, "a-seed3", {ENTROPY: [1.0, 0.5], REWARD: [0.25, math.nan]}, start={"eval/sums/mean@2": 0.5})
    tabulate(directory)
    of_a = {"cell": "a-seed3", "setting": "a", "seed": 3}
    assert rows_of(directory) == [
        of_a | {"step": 0, "metric": "eval/sums/mean@2", "value": 0.5},
        of_a | {"step": 1, "metric": ENTROPY, "value": 1.0},
        of_a | {"step": 1, "metric": REWARD, "value": 0.25},
        of_a | {"step": 2, "metric": ENTROPY, "value": 0.5},
    ]
    schema = pq.read_schema(directory.table_path)
    assert [str(kind) for kind in schema.types] == ["string", "string", "int64", "int64", "string", "double"]


def test_measures_at_the_end_and_over_the_run(tmp_path: Path) -> None:
    """20 steps: the end is the last two, the area the mean of all twenty."""
    directory = make_ablation(tmp_path, ["a"], seeds=[0, 1])
    curve = [1 - step / 40 for step in range(20)]
    for seed, shift in ((0, 0.0), (1, 0.1)):
        curves = {
            ENTROPY: [value + shift for value in curve], REWARD: [0.0] * 18 + [0.4, 0.6],
            "clip_ratio/low_mean": [0.01, 0.03] * 10, "clip_ratio/high_mean": [0.02] * 20,
            "response_length/mean": [9.0] * 18 + [30.0, 50.0],
        }  # fmt: skip
        add_run(directory, f"a-seed{seed}", curves)
    summary = tabulate(directory)
    measures = {name: one.seeds.value for name, one in summary.settings[0].measures.items()}
    assert measures == {
        "entropy_end": pytest.approx((curve[18] + curve[19]) / 2 + 0.05),
        "entropy_mean": pytest.approx(sum(curve) / 20 + 0.05),
        "reward_end": pytest.approx(0.5),
        "clip_low_mean": pytest.approx(0.02),
        "clip_high_mean": pytest.approx(0.02),
        "length_end": pytest.approx(40.0),
    }
    found = setting_of(read_summary(directory), "a")
    # Two seeds that differ by 0.1: deviation 0.1 / sqrt(2), half-width 12.7062 x 0.05.
    assert found["measures"]["entropy_end"]["half_width"] == pytest.approx(0.6353102, rel=1e-6)
    assert found["measures"]["reward_end"]["half_width"] == pytest.approx(0.0)
    assert found["differences"] is None
    assert (found["about"], found["planned"], found["seeds"]) == ("it is a", 2, [0, 1])


def test_differences_are_paired_with_the_control(tmp_path: Path) -> None:
    """Seeds differ by 0.4, settings by 0.05 and 0.07 at the same seed."""
    directory = make_ablation(tmp_path, ["base", "other"], control="base")
    for seed, level in ((0, 0.2), (1, 0.6)):
        add_run(directory, f"base-seed{seed}", {ENTROPY: [1.0, level]})
        add_run(directory, f"other-seed{seed}", {ENTROPY: [1.0, level + 0.05 + 0.02 * seed]})
    tabulate(directory)
    summary = read_summary(directory)
    assert setting_of(summary, "base")["differences"] is None
    found = setting_of(summary, "other")["differences"]["entropy_end"]
    assert (found["value"], found["n"]) == (pytest.approx(0.06), 2)
    assert found["half_width"] == pytest.approx(12.7062047 * 0.02 / math.sqrt(2) / math.sqrt(2))
    of_setting = setting_of(summary, "other")["measures"]["entropy_end"]
    assert of_setting["half_width"] > 20 * found["half_width"]


def test_a_setting_is_compared_with_its_own_control(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "clip", "coin"], control="base", controls={"clip": "coin"})
    for name, level in (("base", 0.2), ("clip", 0.9), ("coin", 0.6)):
        for seed in (0, 1):
            add_run(directory, f"{name}-seed{seed}", {ENTROPY: [1.0, level + 0.1 * seed]})
    summary = tabulate(directory)
    found = read_summary(directory)
    assert [one["control"] for one in found["settings"]] == [None, "coin", "base"]
    assert setting_of(found, "base")["differences"] is None
    assert setting_of(found, "clip")["differences"]["entropy_end"]["value"] == pytest.approx(0.3)
    assert setting_of(found, "coin")["differences"]["entropy_end"]["value"] == pytest.approx(0.4)
    lines = summary_lines(summary)
    at = [lines.index(f"difference to {control}, in pairs of one seed") for control in ("coin", "base")]
    assert [lines[start + 2].split()[0] for start in at] == ["clip", "coin"]
    assert at[0] < at[1]


def test_evaluations_have_intervals_over_problems_too(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "other"], control="base")
    letters = {
        "base-seed0": ["xx..", "....", "x...", "xxxx"],
        "base-seed1": ["x...", "x...", "....", "xxx."],
        "other-seed0": ["xxx.", "x...", "x...", "xxxx"],
        "other-seed1": ["xx..", "xx..", "x...", "xxxx"],
    }
    shares = {name: np.array([[row.count("x") / 4] for row in rows]) for name, rows in letters.items()}
    for name, rows in letters.items():
        values = {"eval/sums/mean@4": float(shares[name].mean()), "eval/sums/pass@1": 0.0, "eval/sums/pass@4": 0.5}
        run = add_run(
            directory, name, {ENTROPY: [1.0, 0.9]} | {key: [math.nan, value] for key, value in values.items()}
        )
        add_evaluation(run, 2, rows)
    tabulate(directory)
    found = setting_of(read_summary(directory), "other")
    mean = found["measures"]["eval/sums/mean@4"]
    other = (shares["other-seed0"] + shares["other-seed1"]) / 2
    base = (shares["base-seed0"] + shares["base-seed1"]) / 2
    (of_problems,) = estimate(other)
    assert (mean["value"], mean["n"]) == (pytest.approx(other.mean()), 2)
    assert mean["problems"] == {"low": of_problems.low, "high": of_problems.high, "n": 4}
    (paired,) = estimate_difference(other, base)
    difference = found["differences"]["eval/sums/mean@4"]
    assert difference["value"] == pytest.approx(paired.value)
    assert difference["problems"] == {"low": paired.low, "high": paired.high, "n": 4}
    assert "eval/sums/pass@1" not in found["measures"]
    assert found["differences"]["eval/sums/pass@4"]["problems"]["low"] >= 0


def test_answers_to_other_questions_are_not_paired(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "other"], seeds=[0], control="base")
    for name, seed in (("base-seed0", 0), ("other-seed0", 1)):
        run = add_run(directory, name, {ENTROPY: [1.0], "eval/sums/mean@2": [0.5]})
        add_evaluation(run, 1, ["xx", ".."], seed=seed)
    tabulate(directory)
    found = setting_of(read_summary(directory), "other")
    assert found["differences"]["eval/sums/mean@2"]["problems"] is None
    assert found["measures"]["eval/sums/mean@2"]["problems"]["n"] == 2


def test_answers_that_are_damaged_are_said(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0])
    run = add_run(directory, "a-seed0", {ENTROPY: [1.0], "eval/sums/mean@2": [0.5]})
    add_evaluation(run, 1, ["xx", ".."])
    (run.evaluations / "step-000001" / "sums.parquet").write_bytes(b"PAR1")
    tabulate(directory)
    summary = read_summary(directory)
    assert setting_of(summary, "a")["measures"]["eval/sums/mean@2"]["problems"] is None
    (problem,) = summary["problems"]
    assert problem.startswith("a-seed0: sums.parquet in step-000001: ")


def test_cells_that_did_not_finish_are_left_out_and_said(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "other"], seeds=[0, 1, 2], control="base")
    for seed in (0, 1):
        add_run(directory, f"base-seed{seed}", {ENTROPY: [1.0, 0.5]})
    add_run(directory, "base-seed2", {ENTROPY: [1.0]}, status="failed", message="engine 0 died")
    add_run(directory, "other-seed0", {ENTROPY: [1.0, 0.7]})
    add_run(directory, "other-seed1", {ENTROPY: [1.0]}, status="interrupted", message="Ctrl-C")
    tabulate(directory)
    summary = read_summary(directory)
    assert summary["is_final"]
    assert summary["steps"] == [2]
    assert summary["left_out"] == {
        "base-seed2": "failed after step 1: engine 0 died",
        "other-seed1": "stopped after step 1: Ctrl-C",
        "other-seed2": "not begun",
    }
    base, other = (setting_of(summary, name) for name in ("base", "other"))
    assert (base["planned"], base["seeds"], other["seeds"]) == (3, [0, 1], [0])
    assert other["measures"]["entropy_end"] == {
        "value": 0.7, "half_width": None, "low": None, "high": None, "n": 1, "problems": None,
    }  # fmt: skip
    assert other["differences"]["entropy_end"]["n"] == 1
    # Of those that are left out, too, the table has what they made.
    assert {row["cell"] for row in rows_of(directory)} == {
        "base-seed0", "base-seed1", "base-seed2", "other-seed0", "other-seed1",
    }  # fmt: skip


def test_while_no_run_is_finished_they_are_compared_as_far_as_all_are(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "other"], seeds=[0, 1], control="base")
    add_run(directory, "base-seed0", {ENTROPY: [1.0, 0.8, 0.1]}, status="running")
    add_run(directory, "other-seed0", {ENTROPY: [1.0, 0.9]}, status="interrupted")
    add_run(directory, "base-seed1", {ENTROPY: [1.0]}, status="failed", message="NaN")
    tabulate(directory)
    summary = read_summary(directory)
    assert (summary["is_final"], summary["steps"]) == (False, [2])
    assert summary["left_out"] == {"base-seed1": "failed after step 1: NaN", "other-seed1": "not begun"}
    assert setting_of(summary, "base")["measures"]["entropy_end"]["value"] == 0.8
    assert setting_of(summary, "other")["differences"]["entropy_end"]["value"] == pytest.approx(0.1)


def test_nothing_has_begun(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0], control=None)
    tabulate(directory)
    summary = read_summary(directory)
    assert rows_of(directory) == []
    assert (summary["steps"], summary["left_out"]) == ([], {"a-seed0": "not begun"})
    assert setting_of(summary, "a")["measures"] == {}


def test_a_row_that_is_being_written_and_a_damaged_one(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0])
    run = add_run(directory, "a-seed0", {ENTROPY: [1.0, 0.5]}, status="running")
    whole = run.metrics_path.read_text()
    run.metrics_path.write_text(whole + '{"step": 3, "actor/ent')
    assert tabulate(directory).problems == ()
    assert {row["step"] for row in rows_of(directory)} == {1, 2}
    run.metrics_path.write_text("nonsense\n" + whole)
    summary = tabulate(directory)
    assert {row["step"] for row in rows_of(directory)} == {1, 2}
    assert summary.compared.upto == {"a-seed0": 2}
    assert summary.problems == (
        "a-seed0: metrics.jsonl, line 1: expected a JSON object with a \"step\", found b'nonsense\\n'",
    )


def test_what_is_no_number_is_in_no_mean(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0])
    run = add_run(directory, "a-seed0", {ENTROPY: [1.0, 0.5], "eval/sums/mean@2": [0.25, 0.75]})
    run.metrics_path.write_text(run.metrics_path.read_text().replace("0.5", "NaN").replace("0.75", "Infinity"))
    measures = tabulate(directory).settings[0].measures
    assert {name: one.seeds.value for name, one in measures.items()} == {"entropy_mean": 1.0, "eval/sums/mean@2": 0.25}
    assert len(rows_of(directory)) == 2


def test_a_run_whose_state_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0, 1])
    add_run(directory, "a-seed0", {ENTROPY: [1.0, 0.5]})
    run = add_run(directory, "a-seed1", {ENTROPY: [1.0, 0.5]})
    run.state_path.write_text("{")
    tabulate(directory)
    summary = read_summary(directory)
    assert setting_of(summary, "a")["seeds"] == [0]
    assert "state.json is damaged" in summary["left_out"]["a-seed1"]


def test_a_cell_without_a_first_step(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0, 1])
    add_run(directory, "a-seed0", {ENTROPY: [1.0, 0.5]})
    run = add_run(directory, "a-seed1", {ENTROPY: [1.0]}, status="running")
    run.metrics_path.unlink()
    tabulate(directory)
    assert read_summary(directory)["left_out"] == {"a-seed1": "running after step 0"}
