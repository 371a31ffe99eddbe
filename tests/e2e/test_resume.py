"""What else goes on from a checkpoint: a run under another layout, a new run with the weights of another. That a killed
run repeats its steps is in test_train.py."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.configuration import write_tiny_config
from tests.e2e.resumed_runs import latest, metrics_of, rollouts_of, train_to_the_end


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
