"""`megarl theory RUN|ABLATION|TABLE` as a person runs it: what it prints and writes, and what it refuses."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from megarl.ablation.directory import AblationDirectory
from megarl.cli import practice
from megarl.cli.main import app
from megarl.cli.practice import run_practice
from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.theory.practice.numbers import read_practice
from tests.ablation.directories import begin_run
from tests.ablation.runs_of_cells import cell_of, make_ablation
from tests.telemetry.runs import write_metrics
from tests.theory.practice_runs import UPDATES, write_practice_run

SLOPES = {"a": 3.0, "b": 1.0}
NOT_FINISHED = RunState(status="running", step=0)


def add_cells(directory: AblationDirectory) -> None:
    """Two settings with two seeds; the second of b has not begun."""
    for name, seed in (("a", 0), ("a", 1), ("b", 0)):
        run = begin_run(directory, cell_of(directory, f"{name}-seed{seed}"), NOT_FINISHED)
        budgets = 0.1 * np.random.default_rng(seed).standard_normal((4, UPDATES))
        differences = np.where(budgets > 0, 1.0, -1.0)
        write_practice_run(
            directory.path,
            budgets=budgets,
            slope=SLOPES[name],
            seed=seed,
            differences=differences,
            evaluated=True,
            run=RunDirectory(run.path),
        )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(ablation, output directory, what was printed)."""
    folder = tmp_path_factory.mktemp("practice")
    directory = make_ablation(folder, ["a", "b"], control="a")
    add_cells(directory)
    file = io.StringIO()
    assert run_practice(Console(file=file, width=80), [directory.path], folder / "out") == 0
    return directory.path, folder / "out", file.getvalue()


def table_after(text: str, title: str) -> list[str]:
    lines = text.splitlines()
    start = lines.index(title)
    rule = next(index for index, line in enumerate(lines[start:], start) if line.strip().startswith("─"))
    rows = lines[rule + 1 :]
    return rows[: next(index for index, row in enumerate(rows) if not row.strip())]


def test_the_slopes_of_the_settings_are_printed_in_columns(told: tuple[Path, Path, str]) -> None:
    rows = table_after(told[2], "Predicted and measured entropy change")
    whole = [row for row in rows if "since the step began" in row and "plain" in row]
    assert [row.split()[0] for row in whole] == ["a", "b"]
    assert re.search(r"24\s+100 ± 0\s+\+1\.00 ± 0\.00\s+3 ± \S+\s+0\.00 ± 0\.00", whole[0])
    assert re.search(r"12\s+100\s+\+1\.00\s+1\s+0\.00", whole[1])  # one seed: no interval
    assert len({len(row) for row in rows}) == 1
    assert "…" not in told[2]


def test_every_table_is_there(told: tuple[Path, Path, str]) -> None:
    titles = [
        "The sign of clipping's term, update by update",
        "Clipped tokens, one by one",
        "Where they are",
        "Predicted and measured entropy change",
        "The same by the update's place in its step",
        "At equal entropy",
        "Against the control, at equal entropy",
    ]
    assert [line for line in told[2].splitlines() if line in titles] == titles
    assert "not begun: b-seed1" in told[2]
    plain = json.loads((told[1] / "practice.json").read_text(encoding="utf-8"))
    assert [table["title"] for table in plain["tables"]] == titles


def test_figures_page_and_numbers_are_written(told: tuple[Path, Path, str]) -> None:
    _, out, text = told
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures == {path.stem for path in (out / "figures").glob("*.svg")}
    assert figures >= {
        *("negative_by_surprisal", "negative_by_quintile", "negative_by_position", "within_a_step"),
        *("prediction_correlation", "prediction_sign", "entropy_held_mean_at_4", "entropy_reward_mean"),
    }
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == len(figures)
    assert "Where they are" in page
    assert f"({len(figures)} as PNG and SVG)" in text


def test_the_table_says_the_same_again(told: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, out, text = told
    file = io.StringIO()
    run_practice(Console(file=file, width=80), [out / "clip.practice.parquet"], tmp_path / "again")
    again = file.getvalue()
    first = text[text.index("The sign of") : text.index("What was read")]
    assert again[again.index("The sign of") : again.index("What was read")] == first
    assert read_practice(tmp_path / "again" / "clip.practice.parquet").controls == {"b": "a"}


def test_one_run_and_several(told: tuple[Path, Path, str], tmp_path: Path) -> None:
    runs = sorted((told[0] / "cells" / "runs").glob("*-train-*"))
    file = io.StringIO()
    run_practice(Console(file=file, width=80), [runs[0]], tmp_path / "one")
    assert "At equal entropy" not in file.getvalue()
    (row,) = [row for row in table_after(file.getvalue(), "Clipped tokens, one by one") if row.strip().startswith("X")]
    assert "all settings" not in row
    run_practice(Console(file=file, width=80), runs, tmp_path / "many")
    assert len(read_practice(tmp_path / "many" / "runs.practice.parquet").runs) == 3


def test_the_command_takes_a_run_where_a_configuration_may_stand(told: tuple[Path, Path, str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["theory", str(told[1] / "clip.practice.parquet"), "--output", str(tmp_path / "x")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x" / "report.html").is_file()


def test_what_is_no_run_is_refused(told: tuple[Path, Path, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    table = told[1] / "clip.practice.parquet"
    own = tmp_path / "table.parquet"
    own.write_bytes(table.read_bytes())
    named = tmp_path / "a.parquet"
    named.mkdir()
    for paths, words in (
        ([empty], "megarl theory: .*is no run directory"),
        ([told[0], Path("a.b=3")], "a.b=3 looks like a change of a configuration"),
        ([table, told[0]], "is a table of its own; expected it alone"),
        ([tmp_path / "none.parquet"], r"none\.parquet does not exist; expected a table that"),
        ([own], r"expected table\.practice\.parquet beside it, which tools/store_results\.py writes"),
        ([named], r"a\.parquet is no run directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_practice(Console(file=io.StringIO()), paths, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_directory_that_is_taken_is_refused_before_the_runs_are_read(
    told: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(practice, "practice_of_ablation", lambda *_: pytest.fail("read"))
    file = tmp_path / "file"
    file.touch()
    for output, words in ((told[1], "expected an empty or a new directory"), (file, "cannot be made a directory")):
        with pytest.raises(ConfigError, match=words):
            run_practice(Console(file=io.StringIO()), [told[0]], output)


def test_runs_without_updates_and_rollouts_are_refused(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a"], seeds=[0])
    run = begin_run(directory, cell_of(directory, "a-seed0"), RunState(status="finished", step=1))
    write_metrics(run.metrics_path, [{"step": 1, "actor/entropy": 1.0}])
    with pytest.raises(ConfigError, match=r"expected runs of .* with updates\.jsonl and rollouts/.*has no updates"):
        run_practice(Console(file=io.StringIO()), [directory.path], tmp_path / "out")
