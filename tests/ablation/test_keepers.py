"""Which runs have a keeper together, and when it ends. Runs and keepers are stand-ins, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from megarl.ablation import keepers
from megarl.ablation.directory import CellFacts
from megarl.ablation.driver import Task
from megarl.ablation.keepers import Keeper, KeeperStart, start_keeper
from megarl.ablation.processes import RunProcess, Slot
from megarl.telemetry.run_directory import make_numbered
from tests.ablation.test_driver import LONG, ROOT, Stage, once


class Kept(Stage):
    """A folder with tasks whose engines are kept."""

    def kept(self, name: str, shape: str = "s", *, keeper: dict[str, Any] | None = None, **behaviour: Any) -> Task:
        """keeper: how its keeper behaves, if it is the one that starts it."""

        def start(slot: Slot) -> Keeper:
            directory = make_numbered(self.folder, shape)
            command = [sys.executable, "-m", "tests.ablation.keeper_stand_in", str(directory), str(self.journal)]
            return start_keeper(
                [*command, json.dumps(keeper or {})],
                shape=shape,
                slot=slot,
                directory=directory,
                working_directory=self.folder,
                environment=os.environ | {"PYTHONPATH": str(ROOT)},
            )

        return replace(self.task(name, **behaviour), keeper=KeeperStart(shape, start))

    def keeper_pid(self, name: str = "s") -> int:
        return int((self.folder / name / "pid").read_text())

    def most_runs_with_one_keeper(self) -> int:
        """At the same time."""
        now: dict[str, int] = {}
        of: dict[str, str] = {}
        most = 0
        for what, name in (line.split() for line in self.happened()):
            if what.startswith("with-"):
                of[name] = what
                now[what] = now.get(what, 0) + 1
                most = max(most, now[what])
            elif what == "end":
                now[of[name]] -= 1
        return most

    def in_order(self, *lines: str) -> bool:
        """Whether these happened, one after the other, with whatever between them."""
        happened = iter(self.happened())
        return all(line in happened for line in lines)


@pytest.fixture
def stage(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_runs_of_one_shape_have_one_keeper_and_it_ends_after_the_last(stage: Kept) -> None:
    assert stage.driver(*(stage.kept(name) for name in "abc")).run()
    assert sorted(line for line in stage.happened() if line.startswith("with")) == ["with-s a", "with-s b", "with-s c"]
    assert stage.happened().count("keep s") == 1
    assert stage.happened()[-1] == "kept s"
    assert stage.in_order("end a", "begin b", "end b", "begin c", "end c", "kept s")


def test_different_shapes_never_have_one_and_one_ends_before_another_begins(stage: Kept) -> None:
    tasks = stage.kept("a", "s"), stage.kept("b", "t"), stage.kept("c", "t"), stage.task("d"), stage.kept("e", "t")
    assert stage.driver(*tasks).run()
    with_keepers = [line for line in stage.happened() if line.startswith("with")]
    assert with_keepers == ["with-s a", "with-t b", "with-t c", "with-t-2 e"]
    assert stage.in_order("end a", "kept s", "keep t", "end c", "kept t", "begin d", "end d", "keep t-2")


def test_a_run_takes_the_place_where_its_engines_are(stage: Kept) -> None:
    tasks = stage.kept("a", "s", step_s=0.15), stage.kept("b", "t"), stage.kept("c", "t", steps=9, step_s=0.1)
    assert stage.driver(*tasks, stage.kept("d", "s"), at_once=2).run()
    with_keepers = [line for line in stage.happened() if line.startswith("with")]
    assert sorted(with_keepers) == ["with-s a", "with-s d", "with-t b", "with-t c"]


def test_each_place_has_its_own(stage: Kept) -> None:
    tasks = [stage.kept(name, steps=4, step_s=0.2) for name in "abcd"]
    assert stage.driver(*tasks, at_once=2).run()
    assert stage.most_runs_with_one_keeper() == 1
    assert sum(line.startswith("keep s") for line in stage.happened()) == 2


@pytest.mark.parametrize("fault", [{"fails": 1}, {"fails": 1, "killed": True}, {"fails": 1, "code": 130}])
def test_after_a_run_that_failed_the_next_starts_afresh(stage: Kept, fault: dict[str, Any]) -> None:
    driver = stage.driver(stage.kept("a", **fault), stage.kept("b"), retries=1)
    driver.run()
    assert driver.facts["b"].status == "finished"
    with_keepers = [line for line in stage.happened() if line.startswith("with")]
    assert with_keepers == ["with-s a", "with-s-2 b", "with-s-2 a"]
    assert stage.in_order("with-s a", "kept s", "keep s-2", "end b", "end a", "kept s-2")
    assert driver.facts["a"] == CellFacts(status="finished", attempts=2)


def test_one_that_died_is_not_used_again(stage: Kept) -> None:
    first = stage.kept("a", steps=8, step_s=0.1)
    kill = once((first.link / "metrics.jsonl").exists, lambda: os.kill(stage.keeper_pid(), signal.SIGKILL))
    stage.told.on_look = kill
    assert stage.driver(first, stage.kept("b")).run()
    assert stage.in_order("with-s a", "end a", "with-s-2 b", "end b", "kept s-2")
    assert "kept s" not in stage.happened()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_it_ends_once_its_run_has(stage: Kept, number: signal.Signals) -> None:
    task = stage.kept("a", stop_s=0.5, **LONG)
    stage.told.on_look = once((task.link / "metrics.jsonl").exists, lambda: os.kill(os.getpid(), number))
    driver = stage.driver(task, stage.kept("b"))
    assert not driver.run()
    assert driver.facts["a"].status == "stopped"
    assert stage.happened()[-2:] == [f"stop-{number.name} a", "kept s"]
    assert not is_alive(stage.keeper_pid())


def test_after_an_error_of_the_driver_none_is_left(stage: Kept) -> None:
    task = stage.kept("a", **LONG)

    def break_down() -> None:
        raise ZeroDivisionError

    stage.told.on_look = once((task.link / "metrics.jsonl").exists, break_down)
    with pytest.raises(ZeroDivisionError):
        stage.driver(task).run()
    assert stage.happened()[-2:] == ["stop-SIGTERM a", "kept s"]


def test_one_that_nobody_waits_for_ends_while_others_run(stage: Kept) -> None:
    long = stage.kept("b", "t", steps=12, step_s=0.2)
    assert stage.driver(stage.kept("a", "s"), long, at_once=2).run()
    assert stage.in_order("end a", "kept s", "end b", "kept t")


class Slow:
    """In the place of a keeper: one that takes its time to end."""

    def __init__(self, shape: str) -> None:
        self.shape, self.given, self.told_s = shape, Slot({}), 0.0

    def end(self) -> None:
        self.told_s = self.told_s or time.monotonic()

    @property
    def has_ended(self) -> bool:
        return self.told_s > 0 and time.monotonic() > self.told_s + 1.0


def test_one_place_is_cleared_for_one_run(stage: Kept) -> None:
    slow = [Slow("s"), Slow("t")]
    told: list[int] = []
    task = stage.kept("a", "u")

    def start(slot: Slot) -> RunProcess:
        told.append(sum(each.told_s > 0 for each in slow))
        return task.start(slot)

    driver = stage.driver(replace(task, start=start), at_once=2)
    for place, keeper in zip(driver._free, slow, strict=True):
        place.keeper = cast(Keeper, keeper)
    assert driver.run()
    assert told == [1]
    assert all(each.has_ended for each in slow)  # the other one when nobody waited any more


def test_one_that_does_not_end_is_killed(stage: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepers, "_END_LIMIT_S", 0.5)
    assert stage.driver(stage.kept("a", keeper={"stubborn": True}), stage.kept("b", "t")).run()
    assert stage.in_order("end a", "keep t", "end b", "kept t")
    assert not is_alive(stage.keeper_pid())


def test_a_keeper_that_cannot_be_started_fails_that_run_alone(stage: Kept) -> None:
    def refuse(_: Slot) -> Keeper:
        raise FileNotFoundError("no such program")

    driver = stage.driver(replace(stage.task("a"), keeper=KeeperStart("s", refuse)), stage.kept("b"))
    assert not driver.run()
    assert "its process did not start: no such program" in (driver.facts["a"].message or "")
    assert driver.facts["b"].status == "finished"


DRIVER = """
import sys
from pathlib import Path
from tests.ablation.test_keepers import Kept, LONG

stage = Kept(Path(sys.argv[1]))
stage.driver(stage.kept("a", steps=30, step_s=0.1), stage.kept("b")).run()
"""


def test_of_a_driver_that_was_killed_the_run_goes_on_and_its_keeper_ends_after_it(stage: Kept) -> None:
    (stage.folder / "cells").rmdir()  # the other one makes it
    command = [sys.executable, "-c", DRIVER, str(stage.folder)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    link = stage.folder / "cells" / "a"
    wait_until((link / "metrics.jsonl").exists)
    process.kill()
    process.wait()
    found = replace(stage.kept("a", steps=30), before=CellFacts(status="running", attempts=1))
    assert stage.driver(found, stage.kept("b")).run()
    wait_until(lambda: not is_alive(stage.keeper_pid()))
    assert stage.in_order("with-s a", "end a", "with-s-2 b", "end b", "kept s-2")
    assert stage.in_order("end a", "kept s")
    assert stage.happened().count("begin a") == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
