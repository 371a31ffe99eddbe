"""An ablation's directory: what is written is read again, and every cell's standing is that of its run."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.ablation.directory import AblationDirectory, AblationPlan, CellFacts, CellStatus, is_ablation
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunState
from tests.ablation.directories import begin_run, make_directory, make_plan

ME = ProcessMark.of(os.getpid())
GONE = replace(ME, started=ME.started - 1)
"""The number of this process, when it was another's."""


def test_the_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)
    assert AblationDirectory.open(directory.path).plan() == make_plan()
    assert directory.source_path.read_text() == "# why\n"
    assert is_ablation(directory.path)
    assert not is_ablation(tmp_path)


def test_an_infinite_value_is_valid_json_and_comes_back(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    facts = json.loads(directory.plan_path.read_text(), parse_constant=refuse)
    assert facts["settings"][0]["values"]["objective.clip.high"] == "inf"
    assert directory.plan().setting("low0.2").values["objective.clip.high"] == math.inf
    nested = replace(make_plan().settings[0], values={"a": [-math.inf, {"b": math.inf}], "c": "text"})
    plan = replace(make_plan(), settings=(nested,))
    assert AblationPlan.from_json(plan.as_json()).settings[0] == nested


def test_cells_of_a_setting_come_by_seed() -> None:
    assert [cell.seed for cell in make_plan(seeds=(3, 1, 2)).cells_of("dapo")] == [3, 1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a JSON object"),
        ('{"version": 2}', "expected version 1 of an ablation's plan, found 2"),
        ('{"version": 1, "name": "x"}', "KeyError: 'settings'"),
        ('{"version": 1, "name": "x", "control": null, "settings": [], "cells": [{"a": 1}]}', "TypeError"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    directory = make_directory(tmp_path)
    directory.plan_path.write_text(text)
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        directory.plan()


def test_what_is_no_ablation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no ablation's directory: it has no ablation\.json"):
        AblationDirectory.open(tmp_path)


def test_a_cell_that_did_not_begin_waits(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)
    first = directory.plan().cells[0]
    assert directory.run_of(first) is None
    assert directory.standing_of(first) == CellFacts(status="waiting", attempts=0)


@pytest.mark.parametrize(
    ("run_status", "expected"), [("finished", "finished"), ("failed", "failed"), ("interrupted", "stopped")]
)
def test_the_run_is_believed_and_not_the_driver(tmp_path: Path, run_status: str, expected: str) -> None:
    directory = make_directory(tmp_path)
    first = directory.plan().cells[0]
    run = begin_run(directory, first, RunState(status=run_status, message="so"))  # type: ignore[arg-type]
    directory.write_cells({first.name: CellFacts(status="running", attempts=2)}, ME)
    assert directory.run_of(first) == run.path
    assert directory.standing_of(first) == CellFacts(status=expected, attempts=2, message="so")  # type: ignore[arg-type]


def test_a_run_that_was_killed_has_stopped(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)
    first = directory.plan().cells[0]
    run = begin_run(directory, first, RunState(status="running"))
    assert directory.standing_of(first).status == "running"
    facts = json.loads(run.state_path.read_text()) | {"driver": GONE.as_json()}
    run.state_path.write_text(json.dumps(facts))
    found = directory.standing_of(first)
    assert found.status == "stopped"
    assert "was killed" in (found.message or "")


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_cell_whose_link_was_removed_waits(tmp_path: Path, status: CellStatus) -> None:
    directory = make_directory(tmp_path)
    first = directory.plan().cells[0]
    begin_run(directory, first, RunState(status="finished"))
    directory.write_cells({first.name: CellFacts(status=status, attempts=1)}, ME)
    directory.link_of(first).unlink()
    assert directory.standing_of(first) == CellFacts(attempts=1, message="the link to its run is gone")


def test_a_cell_whose_driver_was_killed_before_it_had_a_run_waits(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)
    first, second, *_ = directory.plan().cells
    facts = {first.name: CellFacts(status="running", attempts=1), second.name: CellFacts(status="failed", attempts=2)}
    directory.write_cells(facts, ME)
    assert directory.standing_of(first).status == "running"
    directory.write_cells(facts, GONE)
    assert directory.standing_of(first) == CellFacts(status="waiting", attempts=1)
    assert directory.standing_of(second).status == "failed"
    assert list(directory.standings()) == [cell.name for cell in directory.plan().cells]


@pytest.mark.parametrize("text", ['{"cells": {}}', '{"driver": {}, "cells": {}}'])
def test_damaged_facts_are_refused(tmp_path: Path, text: str) -> None:
    directory = make_directory(tmp_path)
    directory.cells_path.write_text(text)
    with pytest.raises(ValueError, match=r"cells\.json is damaged"):
        directory.read_cells()


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    directory = make_directory(tmp_path)
    directory.write_cells({"x": CellFacts(status="odd")}, ME)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'odd' is no status of a cell"):
        directory.read_cells()
