"""The table of an ablation on a terminal: numbers below each other, at every width, and what is not in it is said."""

import errno
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from megarl.ablation.directory import AblationDirectory
from megarl.cli.ablation_tables import finish_tables, print_summary
from tests.ablation.runs_of_cells import add_evaluation, add_run, make_ablation


@pytest.fixture
def directory(tmp_path: Path) -> AblationDirectory:
    """Three settings, of which the last has one seed of three."""
    made = make_ablation(tmp_path, ["base", "low0.2-highinf", "late"], seeds=[0, 1, 2], control="base")
    ends = {"base": 0.5, "low0.2-highinf": 1.25, "late": 0.75}
    for cell in made.plan().cells[:7]:
        end = ends[cell.setting] + (0.1, 0.2, 0.31)[cell.seed] * (1.1 if cell.setting == "base" else 1)
        curves = {
            "actor/entropy_over_start": [1.0, end],
            "reward/mean": [0.5, 0.5],
            "clip_ratio/low_mean": [0.001, 0.002],
            "response_length/mean": [9.0, 10.0],
            "eval/sums/mean@4": [0.0, 0.25],
            "eval/sums/pass@2": [0.0, 0.5],
            "eval/sums/pass@4": [0.0, 1.0],
        }
        run = add_run(made, cell.name, curves)
        add_evaluation(run, 2, ["x..."] * 4 if cell.setting == "base" else ["xx.."] * 4)
    return made


def printed(directory: AblationDirectory, *, width: int | None = None) -> list[str]:
    file = io.StringIO()
    print_summary(Console(file=file, width=width, force_terminal=width is not None), directory)
    return file.getvalue().splitlines()


def test_a_row_per_setting(directory: AblationDirectory) -> None:
    lines = printed(directory)
    assert lines[0] == "clip: 9 runs of 3 settings; 7 finished, at step 2"
    assert [re.split(r"\s{2,}", line)[:4] for line in lines[2:6]] == [
        ["setting", "seeds", "H/H0 end", "H/H0 mean"],
        ["base", "3", "0.724 ± 0.287 [3]", "0.862 ± 0.144 [3]"],
        ["low0.2-highinf", "3", "1.453 ± 0.261 [3]", "1.227 ± 0.130 [3]"],
        ["late", "1 of 3", "0.850", "[1]"],
    ]
    assert "sums/mean@4 %" in lines[2]
    assert "sums/pass@4 %" in lines[2]
    assert "pass@2" not in lines[2]
    assert lines[3].endswith("0.500 ± 0.000 [3]  0.15 ± 0.00 [3]  10.0 ± 0.0 [3]  25.0 ± 0.0 [3]  100.0 ± 0.0 [3]")
    assert lines[-1] == "left out: late-seed1, late-seed2: not begun"


def test_differences_are_marked_where_their_interval_excludes_zero(directory: AblationDirectory) -> None:
    lines = printed(directory)
    at = lines.index("difference to base, in pairs of one seed")
    first, second = (re.split(r"\s{2,}", line) for line in lines[at + 2 : at + 4])
    # 0.75 less 0.01, 0.02, 0.031: deviation 0.010504, times 4.302653 / sqrt(3).
    assert first[:3] == ["low0.2-highinf", "3", "+0.730 ± 0.026* [3]"]
    assert first[4] == "+0.000 ± 0.000 [3]"
    assert second[:2] == ["late", "1 of 3"]
    assert not any("*" in cell for cell in second)
    # Over problems all four answers are better by a quarter; over seeds the rows of metrics.jsonl are equal.
    assert first[-2:] == ["+0.0 ± 0.0° [3]", "+0.0 ± 0.0 [3]"]


def test_numbers_stand_below_each_other(directory: AblationDirectory) -> None:
    header, *rows = printed(directory)[2:6]
    for title in ("seeds", "H/H0 end", "reward", "tokens", "sums/mean@4 %"):
        column = header.index(title)
        assert all(row[column - 1] == " " and row[column] != " " for row in rows if len(row) > column), title
    plus_minus = [[found.start() for found in re.finditer("±", row)] for row in rows[:2]]
    assert plus_minus[0] == plus_minus[1]
    brackets = [[found.start() for found in re.finditer(r"\[", row)] for row in rows]
    assert brackets[0] == brackets[1] == brackets[2]


@pytest.mark.parametrize("width", [36, 60, 80, 120])
def test_narrow_terminals_have_the_columns_below_each_other(directory: AblationDirectory, width: int) -> None:
    wide, narrow = printed(directory), printed(directory, width=width)
    tables = [line for line in narrow if line.startswith(("setting ", "base ", "low0.2-highinf ", "late "))]
    assert len(tables) > 7
    assert max(map(len, tables)) <= width
    numbers = re.compile(r"[-+]?\d+\.\d+ ± \d+\.\d+")
    assert sorted(numbers.findall("\n".join(narrow))) == sorted(numbers.findall("\n".join(wide)))


def test_tables_are_written_and_said(directory: AblationDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    assert finish_tables(Console(file=file), directory)
    lines = file.getvalue().splitlines()
    assert lines[:-1] == printed(directory)
    assert lines[-1] == f"tables    {directory.table_path}, summary.json"
    assert directory.table_path.is_file()
    assert directory.summary_path.is_file()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("megarl.ablation.finish.write_table", full)
    told = io.StringIO()
    assert not finish_tables(Console(file=told), directory)
    assert told.getvalue() == "tables    not written: No space left on device\n"


def test_a_control_without_a_run(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["base", "other"], seeds=[0], control="base")
    add_run(directory, "other-seed0", {"actor/entropy_over_start": [1.0, 0.9]})
    lines = printed(directory)
    assert "no difference to base: no other setting has a run of a seed that it has" in lines
    assert "difference to base, in pairs of one seed" not in lines
    assert [line.split()[0] for line in lines[3:5]] == ["base", "other"]
    assert lines[3].split()[1:] == ["0", "of", "1", "-", "-"]


def test_runs_that_have_not_finished_and_none_at_all(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, ["a", "b"], seeds=[0, 1])
    assert printed(directory) == [
        "clip: 4 runs of 2 settings, none with a step",
        "left out: a-seed0, a-seed1, b-seed0 and 1 more: not begun",
    ]
    add_run(directory, "a-seed0", {"actor/entropy_over_start": [1.0, 0.9, 0.8]}, status="running")
    add_run(directory, "b-seed0", {"actor/entropy_over_start": [1.0, 0.7]}, status="running")
    lines = printed(directory)
    assert lines[0] == "clip: 4 runs of 2 settings, none finished; 2 as far as all of them are, at step 2"
    assert "difference" not in "\n".join(lines)  # no control
