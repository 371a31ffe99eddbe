"""A run that was killed goes on: the steps that it repeats are those that it made."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.configuration import write_tiny_config
from tests.e2e.resumed_runs import (
    Kept,
    latest,
    metrics_of,
    rollouts_of,
    train_to_the_end,
    train_until_killed,
)

SMALL = ("parallel.tensor=1", "parallel.world_size=1", "train.steps=4", "checkpoint.every_steps=2")


def test_a_killed_run_repeats_its_steps_bit_for_bit(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    train_until_killed("update 1", 4, config, *SMALL, cwd=tmp_path)
    run = latest(tmp_path)
    kept, made = Kept.of(run), metrics_of(run)
    drawn = {step: rollouts_of(run, step) for step in (1, 2, 3)}
    assert kept.step == 2
    assert [row["step"] for row in made] == [1, 2, 3, *(1, 1), *(2, 2), *(3, 3), 4]
    said = train_to_the_end("--resume", "runs/latest", cwd=tmp_path)
    assert latest(tmp_path).path == run.path
    assert "resume after step 2 of 4, from runs/" in said
    assert "cut    metrics.jsonl: 1 rows beyond step 2" in said
    assert "cut    updates.jsonl: 3 rows beyond step 2" in said
    assert kept.is_untouched()
    again = metrics_of(run)
    assert [row["step"] for row in again] == [1, 2, 3, 4, *(1, 1), *(2, 2), *(3, 3), *(4, 4)]
    # Of the fourth step the killed process had made one update.
    assert [row for row in again if row["step"] < 4] == [row for row in made if row["step"] < 4]
    assert again[-2] == made[-1]
    assert {step: rollouts_of(run, step) for step in (1, 2, 3)} == drawn
    assert run.read_state().status == "finished"
    assert (run.exports / "step-000004").is_dir()
    steps = [event for event in json.loads(run.timeline_path.read_text()) if event["name"] == "step"]
    assert [event["args"]["step"] for event in steps] == [1, 2, 3, 4]


@pytest.mark.slow
def test_another_layout_goes_on_equal_but_for_rounding(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    straight = tmp_path / "straight"
    straight.mkdir()
    train_to_the_end(config, "train.steps=4", "checkpoint.every_steps=2", cwd=straight)
    for number, layout in enumerate((
        ["parallel.tensor=1", "parallel.world_size=1", "policy.distributed_optimizer=false"],
        ["parallel.tensor=1", "parallel.pipeline=2", "rollout.engines=2"],
    )):  # fmt: skip
        other = tmp_path / f"other{number}"
        shutil.copytree(straight, other, symlinks=True)
        run = latest(other)
        shutil.rmtree(run.checkpoints / "step-000004")
        said = train_to_the_end("--resume", "runs/latest", *layout, cwd=other)
        assert "(taken; from here on equal to a run without the change but for rounding)" in said
        rows, expected = metrics_of(run), metrics_of(latest(straight))
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, one in zip(rows, expected, strict=True):
            exact = row["step"] <= 2
            numbers = {name: value for name, value in row.items() if not name.startswith("publish/")}
            others = {name: value for name, value in one.items() if not name.startswith("publish/")}
            assert numbers == (others if exact else pytest.approx(others, rel=1e-3, abs=1e-5))
        assert [row.response_tokens.tolist() for row in rollouts_of(run, 4)] == [
            row.response_tokens.tolist() for row in rollouts_of(latest(straight), 4)
        ]


@pytest.mark.slow
def test_a_new_run_begins_with_the_weights_of_another(tmp_path: Path, tiny_model_dir: Path) -> None:
    """As if they had been exported, and model.path were the export: weights and nothing else."""
    config = write_tiny_config(tmp_path, tiny_model_dir)
    first = tmp_path / "first"
    first.mkdir()
    train_to_the_end(config, "train.steps=2", "checkpoint.every_steps=2", cwd=first)
    made = latest(first)
    rows = []
    for name, override in (
        ("started", f"train.init_from={made.path}"),
        ("exported", f"model.path={made.exports / 'step-000002'}"),
    ):
        cwd = tmp_path / name
        cwd.mkdir()
        said = train_to_the_end(config, "train.steps=2", override, cwd=cwd)
        assert ("weights of" in said) == (name == "started")
        rows.append(metrics_of(latest(cwd)))
    started, exported = rows
    assert started == exported
    # The reference is what it began with: before the first update there is no difference.
    first_update = next(row for row in started if row.get("update") == 0)
    assert first_update["actor/kl_loss"] == pytest.approx(0.0, abs=1e-9)
    assert started[0] != metrics_of(made)[0]
