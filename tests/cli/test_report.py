"""`megarl report` on every kind of run directory."""

import json
from pathlib import Path

import pytest

from megarl.cli import report as module
from megarl.cli.report import draw_figures, run_report
from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.telemetry.runs import make_config


def make_run(parent: Path, verb: str = "train") -> RunDirectory:
    return RunDirectory.create(make_config(parent), source=None, verb=verb)


def test_every_run_is_drawn_and_its_state_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, failed = make_run(tmp_path), make_run(tmp_path, "sft")
    done.metrics_path.write_text(json.dumps({"step": 2, "reward/mean": 0.5}) + "\n")
    done.write_state(RunState(status="finished", step=2))
    failed.write_state(RunState(status="failed", message="no such model"))
    assert run_report([done.path]) == run_report([failed.path]) == 0
    shown = capsys.readouterr().out
    assert "state    finished after step 2\n" in shown
    assert "state    failed after step 0: no such model\n" in shown
    assert f"report   {done.report_path}\n" in shown
    assert done.report_path.is_file()
    assert failed.report_path.is_file()


def test_latest_is_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_report([tmp_path / "latest"]) == 0
    assert run.report_path.is_file()


def test_damage_is_said_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    run.metrics_path.write_text('{"step": 1, "custom": 1.0}\n{"step": 2, "cu')
    run.state_path.write_text("")
    assert run_report([run.path]) == 1
    shown = capsys.readouterr().out
    assert "state    unknown: " in shown
    assert "missing  metrics.jsonl, line 2: cut in half, as a killed run leaves it\n" in shown
    assert f"try again: megarl report {run.path}\n" in shown


def test_what_is_no_run_is_a_configuration_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match=rf"is no run directory: .*; did you mean {run.path}\?"):
        run_report([tmp_path])
    with pytest.raises(ConfigError, match="absent does not exist"):
        run_report([tmp_path / "absent"])


def test_drawing_never_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path, *, page: Path | None) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_run_figures", fail)
    assert draw_figures(make_run(tmp_path)) is False
    shown = capsys.readouterr().out
    assert "figures  not drawn: OSError: No space left on device; try again: megarl report" in shown
