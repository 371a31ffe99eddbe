"""`megarl report` on every kind of run directory."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megarl.cli import report as module
from megarl.cli.main import app
from megarl.cli.report import draw_figures, export_figure, print_figure_names, run_report
from megarl.cli.report_watch import find_watched
from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.ablation.directories import begin_run, make_directory
from tests.report.run_files import write_run
from tests.telemetry.runs import make_config
from tests.tools.stored_tables import make_stored, write_table


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
    def fail(_: Path, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_run_figures", fail)
    assert draw_figures(make_run(tmp_path)) is False
    shown = capsys.readouterr().out
    assert "figures  not drawn: OSError: No space left on device; try again: megarl report" in shown


def test_several_runs_are_compared_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path, high=high, seed=0) for high in (0.2, 0.3)]
    paths = [*(run.path for run in runs), tmp_path / "latest"]  # the last one again
    page = tmp_path / "page.html"
    with pytest.raises(ConfigError, match=r"2 runs are compared on one page; .* -o comparison\.html"):
        run_report(paths)
    assert run_report(paths, output=page) == 0
    assert "runs     2, settings 2\n" in capsys.readouterr().out
    assert page.is_file()
    assert not runs[0].report_path.exists()
    with pytest.raises(ConfigError, match="absent does not exist; expected a directory for page"):
        run_report(paths, output=tmp_path / "absent" / "page.html")
    with pytest.raises(ConfigError, match="is a directory; expected the name of a file in it"):
        run_report(paths, output=tmp_path)


def test_one_run_s_page_goes_where_one_says(tmp_path: Path) -> None:
    run = write_run(tmp_path, high=0.2, seed=0)
    assert run_report([run.path], output=tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").is_file()
    assert not run.report_path.exists()


def test_an_ablation_has_its_report_beside_its_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_directory(tmp_path)
    with pytest.raises(ConfigError, match=r"no cell of .* has begun"):
        run_report([directory.path])
    plan = directory.plan()
    for cell in plan.cells[:2]:
        run = begin_run(directory, cell, RunState(status="finished", step=1))
        run.metrics_path.write_text('{"step": 1, "actor/entropy": 0.5}\n')
    assert run_report([directory.path]) == 0
    assert f"missing  not begun: {plan.cells[2].name}, {plan.cells[3].name}\n" in capsys.readouterr().out
    assert directory.report_path.is_file()
    directory.plan_path.write_text("{")
    with pytest.raises(ConfigError, match=r"ablation\.json is damaged"):
        run_report([directory.path])


def test_a_run_that_has_just_begun_is_said_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path, high=0.2, seed=0), make_run(tmp_path)]
    assert run_report([run.path for run in runs], output=tmp_path / "page.html") == 0
    assert f"missing  {runs[1].path.name}: no step has ended yet" in capsys.readouterr().out
    with runs[0].metrics_path.open("a") as file:
        file.write("cut in ha")
    assert run_report([run.path for run in runs], output=tmp_path / "page.html") == 1
    assert "metrics.jsonl, line 8: cut in half" in capsys.readouterr().out


def test_runs_of_different_verbs_are_a_configuration_error(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, high=0.2, seed=0, verb=verb) for verb in ("train", "sft")]
    with pytest.raises(ConfigError, match="different verbs"):
        run_report([run.path for run in runs], output=tmp_path / "page.html")
    # Of one that does not say what it is nothing is held against the other.
    (runs[1].path / "versions.json").unlink()
    run_report([run.path for run in runs], output=tmp_path / "page.html")


def test_a_page_overwrites_no_file_of_another_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path, high=0.2, seed=0)
    rows = run.metrics_path.read_text()
    with pytest.raises(ConfigError, match=r"ends in \.html, found -o .*metrics\.jsonl"):
        run_report([run.path], output=run.metrics_path)
    assert run.metrics_path.read_text() == rows


def test_figures_are_listed_and_written_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path, high=high, seed=0) for high in (0.2, 0.3)]
    print_figure_names([runs[0].path])
    assert "  entropy                      Policy entropy\n" in capsys.readouterr().out
    paths = [run.path for run in runs]
    written = export_figure([paths[0]], "entropy", file_format=None, width="single", output=None)
    assert written == runs[0].figures / "entropy-single.pdf"
    assert written.read_bytes().startswith(b"%PDF")
    svg = export_figure(paths, "entropy", file_format=None, width="double", output=tmp_path / "figure.svg")
    assert "clip.high=0.3" in svg.read_text()
    with pytest.raises(ConfigError, match=r"no figure 'entrpy'; these runs have entropy, "):
        export_figure(paths, "entrpy", file_format="png", width="single", output=tmp_path / "figure.png")
    with pytest.raises(ConfigError, match=r"figure\.jpg has no format; .* \.png, \.svg or \.pdf, or --format"):
        export_figure(paths, "entropy", file_format=None, width="single", output=tmp_path / "figure.jpg")
    with pytest.raises(ConfigError, match=r"figure\.svg ends in \.svg, but --format is png"):
        export_figure(paths, "entropy", file_format="png", width="single", output=tmp_path / "figure.svg")
    with pytest.raises(ConfigError, match=r"expected where the figure goes, e\.g\. -o entropy\.pdf"):
        export_figure(paths, "entropy", file_format=None, width="single", output=None)


def test_a_figure_of_damaged_files_is_made_and_the_damage_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path, high=high, seed=0) for high in (0.2, 0.28)]
    runs[1].updates_path.write_text("[]\n")
    said = 'updates.jsonl, line 1: expected a JSON object with a "step"; left out\n'
    for paths in ([runs[1].path], [run.path for run in runs]):
        target = tmp_path / f"{len(paths)}.svg"
        export_figure(paths, "predicted_change", file_format=None, width="double", output=target)
        assert target.is_file()
        assert capsys.readouterr().err.endswith(said)


def test_a_stored_table_is_drawn_in_the_place_of_an_ablation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = make_stored("random-reward-products-small", lambda setting, seed, step: {"actor/entropy": 0.5}, steps=2)
    table = write_table(tmp_path, stored)
    print_figure_names([table])
    assert "  entropy                      Policy entropy\n" in capsys.readouterr().out
    svg = export_figure([table], "entropy", file_format=None, width="single", output=tmp_path / "entropy.svg")
    assert "low0.2-coin, mean of 3" in svg.read_text()
    with pytest.raises(ConfigError, match=r"21 runs are compared on one page; .* -o comparison\.html"):
        run_report([table])
    assert run_report([table], output=tmp_path / "page.html") == 0
    shown = capsys.readouterr().out
    assert "runs     21, settings 7\n" in shown
    assert "missing  a stored table has metrics and updates alone: " in shown


def test_what_is_no_stored_table_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("x")
    page = tmp_path / "page.html"
    with pytest.raises(ConfigError, match=r"megarl report: .*x\.parquet cannot be read as a parquet file"):
        run_report([tmp_path / "x.parquet"], output=page)
    with pytest.raises(ConfigError, match=r"absent\.parquet does not exist; expected a table"):
        run_report([tmp_path / "absent.parquet"], output=page)
    with pytest.raises(ConfigError, match="a stored table is drawn by itself, found 2 paths with one"):
        run_report([tmp_path / "x.parquet", tmp_path], output=page)
    with pytest.raises(ConfigError, match=r"x\.parquet is a stored table, which does not go on"):
        find_watched([tmp_path / "x.parquet"])


def test_the_command_line_has_all_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, high=0.2, seed=0)
    command = CliRunner()
    figure = str(tmp_path / "figure.png")
    made = command.invoke(app, ["report", str(run.path), "--figure", "entropy", "-o", figure, "--width", "double"])
    assert (made.exit_code, made.output) == (0, f"figure   {figure}\n")
    assert "Policy entropy" in command.invoke(app, ["report", str(run.path), "--figures"]).output
    page = tmp_path / "page.html"
    assert command.invoke(app, ["report", str(run.path), "-o", str(page)]).exit_code == 0
    assert page.is_file()
    assert isinstance(command.invoke(app, ["report", str(run.path), "--format", "pdf"]).exception, ConfigError)
