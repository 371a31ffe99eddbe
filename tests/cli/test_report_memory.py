"""The plan that a report draws beside a run's memory comes from the run's own configuration."""

import math
import shutil
from pathlib import Path

import pytest

from megarl.cli.report import export_figure, print_figure_names
from megarl.cli.report_memory import memory_planner
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.models.shapes import CONFIGS
from tests.planning.plans import plan_of
from tests.telemetry.runs import make_config, make_row, write_metrics

SHAPE = CONFIGS / "qwen2.5-7b.json"
TURNS = {"colocate": True, "gpus_per_node": 8}


def make_run(parent: Path, model: Path) -> RunDirectory:
    """Of 7 B on 8 GPUs in turns."""
    config = make_config(parent, model={"path": str(model)}, cluster=TURNS, parallel={"world_size": 8, "tensor": 2})
    return RunDirectory.create(config, source=None, verb="train")


def test_the_plan_is_that_of_its_configuration_on_its_gpus(tmp_path: Path) -> None:
    planner = memory_planner(make_run(tmp_path, SHAPE))
    shared = plan_of("qwen2.5-7b", "cluster.colocate=true", gpus=8, tensor=2).shared
    assert shared is not None
    plan = planner(80.0)
    assert plan.problem == ""
    assert {phase.name: (phase.policy, phase.engine) for phase in plan.phases} == {
        turn.name: (turn.policy / 2**30, turn.engine / 2**30) for turn in shared.turns
    }
    assert planner(141.0).of("generate").engine == pytest.approx(0.85 * 141)
    assert planner(None).of("update").policy == pytest.approx(plan.of("update").policy - 2)
    assert math.isnan(plan.of("dinner").policy)


def test_where_the_model_is_gone_what_the_run_exported_has_its_shape(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(SHAPE, model / "config.json")
    run = make_run(tmp_path, model)
    before = memory_planner(run)(80.0)
    assert before.phases
    exported = run.exports / "step-000003"
    exported.mkdir(parents=True)
    model.rename(exported / "whole")
    assert memory_planner(run)(80.0).problem.startswith(f'model.path "{model}": no such directory')
    shutil.copy(SHAPE, exported / "config.json")
    assert memory_planner(run)(80.0) == before


def test_a_configuration_that_nobody_reads_is_no_plan(tmp_path: Path) -> None:
    run = make_run(tmp_path, SHAPE)
    run.config_path.write_text("name = 3")
    assert str(run.config_path) in memory_planner(run)(80.0).problem
    run.config_path.unlink()
    assert memory_planner(run)(80.0).problem != ""


def test_it_is_a_figure_like_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, SHAPE)
    measured = {"memory/gpu_gib": 80.0, "memory/policy_update_gpu_max_gib": 61.0, "memory/asleep_max_gib": 1.0}
    write_metrics(run.metrics_path, [make_row(1) | measured])
    run.write_state(RunState(status="finished", step=1))
    print_figure_names([run.path])
    shown = capsys.readouterr().out
    assert "Memory\n  memory_by_phase              Memory by phase of a step\n  memory_residual" in shown
    for file_format in ("png", "svg", "pdf"):
        path = export_figure([run.path], "memory_by_phase", file_format=file_format, width="single", output=None)
        assert path == run.figures / f"memory_by_phase-single.{file_format}"
        assert path.stat().st_size > 2000
    text = (run.figures / "memory_by_phase-single.svg").read_text()
    assert "update: planned 58.89, measured 61." in text
    assert "memory of the GPU" in text
