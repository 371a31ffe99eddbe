"""The driver of an ablation's runs: order, how many at a time, failures, signals, and what an earlier driver has left.

The runs are stand-ins: processes of their own that write a run's directory and make no steps.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megarl.ablation.directory import CellFacts
from megarl.ablation.driver import Driver, Task
from megarl.ablation.processes import FoundProcess, RunProcess, Slot, start_process
from megarl.telemetry.run_directory import RunDirectory, RunState

ROOT = Path(__file__).parents[2]
LONG = {"steps": 1000, "step_s": 0.05}


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.on_look: Callable[[Mapping[str, CellFacts]], None] = lambda _: None

    def began(self, task: Task, facts: CellFacts) -> None:
        self.lines.append(f"{task.name} began {facts.attempts}")

    def ended(self, task: Task, facts: CellFacts) -> None:
        self.lines.append(f"{task.name} {facts.status}")

    def stopping(self, signal_name: str, running: Sequence[str]) -> None:
        self.lines.append(f"{signal_name} to {' '.join(running)}")

    def look(self, facts: Mapping[str, CellFacts]) -> None:
        self.on_look(facts)


class Stage:
    """A folder with the tasks of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / "journal"
        (folder / "cells").mkdir()
        self.written: list[dict[str, str]] = []
        self.told = Told()

    def task(self, name: str, before: CellFacts | None = None, **behaviour: Any) -> Task:
        link = self.folder / "cells" / name
        log = self.folder / "cells" / f"{name}.log"
        behaviour = {"steps": 3} | behaviour
        command = [sys.executable, "-m", "tests.ablation.stand_in", link, self.journal, json.dumps(behaviour)]

        def start(slot: Slot) -> RunProcess:
            return start_process(
                list(map(str, command)),
                log=log,
                working_directory=self.folder,
                environment=os.environ | {"PYTHONPATH": str(ROOT)},
                slot=slot,
            )

        return Task(name=name, link=link, log=log, steps=behaviour["steps"], start=start, before=before or CellFacts())

    def driver(self, *tasks: Task, at_once: int = 1, retries: int = 0) -> Driver:
        slots = [Slot({})] * at_once
        return Driver(tasks, slots, retries=retries, watcher=self.told, write=self._write)

    def happened(self) -> list[str]:
        """What the journal says, without times."""
        return [" ".join(line.split()[:2]) for line in self.journal.read_text().splitlines()]

    def most_at_once(self) -> int:
        most = now = 0
        for line in self.journal.read_text().splitlines():
            now += 1 if line.startswith("begin") else -1
            most = max(most, now)
        return most

    def _write(self, facts: Mapping[str, CellFacts]) -> None:
        self.written.append({name: of.status for name, of in facts.items()})


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def once(condition: Callable[[], bool], action: Callable[[], None]) -> Callable[[Mapping[str, CellFacts]], None]:
    """For `on_look`: the action, the first time that the condition holds."""
    done = threading.Event()

    def look(_: Mapping[str, CellFacts]) -> None:
        if not done.is_set() and condition():
            done.set()
            action()

    return look


def test_one_after_the_other_in_the_order_of_the_plan(stage: Stage) -> None:
    driver = stage.driver(*(stage.task(name) for name in "abc"))
    assert driver.run()
    assert stage.happened() == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]
    assert stage.told.lines == [line for name in "abc" for line in (f"{name} began 1", f"{name} finished")]
    assert stage.written[0] == dict.fromkeys("abc", "waiting")
    assert stage.written[-1] == dict.fromkeys("abc", "finished")
    assert {"a": "finished", "b": "running", "c": "waiting"} in stage.written
    assert "a line of its own" in (stage.folder / "cells" / "a.log").read_text()


def test_so_many_at_a_time_and_no_more(stage: Stage) -> None:
    assert stage.driver(*(stage.task(name, step_s=0.2) for name in "abcde"), at_once=2).run()
    assert stage.most_at_once() == 2


def test_a_failure_is_tried_again_behind_the_others(stage: Stage) -> None:
    driver = stage.driver(stage.task("a", fails=1), stage.task("b"), retries=1)
    assert driver.run()
    assert stage.happened() == ["begin a", "fail a", "begin b", "end b", "begin a", "end a"]
    assert driver.facts["a"] == CellFacts(status="finished", attempts=2)


def test_a_failure_stops_no_other_and_is_told(stage: Stage) -> None:
    driver = stage.driver(stage.task("a", fails=9), stage.task("b"), retries=2)
    assert not driver.run()
    assert driver.facts == {
        "a": CellFacts(status="failed", attempts=3, message="it broke\nin step 2"),
        "b": CellFacts(status="finished", attempts=1),
    }


def test_a_refused_configuration_is_not_tried_again(stage: Stage) -> None:
    driver = stage.driver(stage.task("a", fails=9, code=2), retries=5)
    assert not driver.run()
    assert driver.facts["a"].attempts == 1


def test_one_that_dies_before_it_has_a_run_leaves_its_last_words(stage: Stage) -> None:
    driver = stage.driver(stage.task("a", fails=9, silent=True), stage.task("b"))
    assert not driver.run()
    message = driver.facts["a"].message or ""
    assert "its process ended with exit code 1" in message
    assert "ImportError: no module" in message
    assert driver.facts["b"].status == "finished"


def test_the_last_words_are_those_of_the_last_attempt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which did not come so far as the one before, whose message its run still has, however soon it began after it."""
    monkeypatch.setattr("megarl.ablation.driver._LOOK_EVERY_S", 0.001)
    first, second = stage.task("a", fails=1), stage.task("a", fails=2, silent=True)
    starts = iter((first.start, second.start))

    def start(slot: Slot) -> RunProcess:
        return next(starts)(slot)

    driver = stage.driver(replace(first, start=start), retries=1)
    assert not driver.run()
    assert driver.facts["a"].attempts == 2
    assert "ImportError: no module" in (driver.facts["a"].message or "")


def test_one_that_is_killed_is_tried_again(stage: Stage) -> None:
    driver = stage.driver(stage.task("a", fails=1, killed=True), retries=1)
    assert driver.run()
    assert driver.facts["a"].attempts == 2
    assert stage.happened() == ["begin a", "begin a", "end a"]


def test_a_command_that_cannot_be_started_fails_that_run_alone(stage: Stage) -> None:
    def refuse(_: Slot) -> RunProcess:
        raise FileNotFoundError("no such program")

    broken = Task(name="a", link=stage.folder / "a", log=stage.folder / "a.log", steps=1, start=refuse)
    driver = stage.driver(broken, stage.task("b"))
    assert not driver.run()
    assert "its process did not start: no such program" in (driver.facts["a"].message or "")
    assert driver.facts["b"].status == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_handed_on_once_to_every_run_and_nothing_more_begins(stage: Stage, number: signal.Signals) -> None:
    # While the second takes its time, the first one's place is free.
    tasks = [stage.task(name, **LONG, stop_s=stop_s) for name, stop_s in (("a", 0.0), ("b", 1.0), ("c", 0.0))]
    metrics = [task.link / "metrics.jsonl" for task in tasks[:2]]
    stage.told.on_look = once(lambda: all(path.exists() for path in metrics), lambda: os.kill(os.getpid(), number))
    asked = signal.signal(number, signal.default_int_handler)  # heard, even where whoever started the tests ignores it
    try:
        driver = stage.driver(*tasks, at_once=2, retries=3)
        assert not driver.run()
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, asked)
    assert driver.stopped_by == number.name
    heard = "SIGTERM" if number == signal.SIGHUP else number.name
    assert sorted(stage.happened()) == ["begin a", "begin b", f"stop-{heard} a", f"stop-{heard} b"]
    assert f"{number.name} to a b" in stage.told.lines
    assert {name: facts.status for name, facts in driver.facts.items()} == {
        "a": "stopped", "b": "stopped", "c": "waiting",
    }  # fmt: skip
    assert driver.facts["a"].message == f"stopped by {heard}"


def test_a_run_that_somebody_stops_is_not_tried_again(stage: Stage) -> None:
    task = stage.task("a", **LONG)

    def stop() -> None:
        run = RunDirectory.open(task.link)
        mark = run.driver()
        assert mark is not None
        os.kill(mark.pid, signal.SIGINT)

    stage.told.on_look = once((task.link / "metrics.jsonl").exists, stop)
    driver = stage.driver(task, stage.task("b"), retries=3)
    assert not driver.run()
    assert driver.facts["a"].status == "stopped"
    assert driver.facts["b"].status == "finished"
    assert stage.happened().count("begin a") == 1


def test_going_on_leaves_what_is_finished_and_begins_with_what_had_stopped(stage: Stage) -> None:
    for name, status in (("a", "finished"), ("b", "failed"), ("d", "interrupted")):
        stage.journal.touch()
        run = RunDirectory(stage.folder / "cells" / "runs" / name)
        run.path.mkdir(parents=True)
        run.write_state(RunState(status=status, step=2))  # type: ignore[arg-type]
        (stage.folder / "cells" / name).symlink_to(run.path)
    driver = stage.driver(
        stage.task("a", CellFacts(status="finished", attempts=1)),
        stage.task("b", CellFacts(status="failed", attempts=1)),
        stage.task("c"),
        stage.task("d", CellFacts(status="stopped", attempts=1)),
        stage.task("e", CellFacts(status="running", attempts=1)),  # its driver was killed before it had a run
    )
    assert driver.run()
    assert [line for line in stage.happened() if line.startswith("begin")] == [
        "begin d", "begin c", "begin b", "begin e",
    ]  # fmt: skip
    assert driver.facts["d"] == CellFacts(status="finished", attempts=2)
    rows = (stage.folder / "cells" / "d" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3]


@pytest.mark.parametrize(
    "slots",
    [[Slot({})], [Slot({"GPUS": "0"}), Slot({"GPUS": "1"})], [Slot({}, cores=frozenset({core})) for core in range(2)]],
    ids=["the only place", "places with GPUs", "places with cores"],
)
def test_a_run_that_outlived_its_driver_is_waited_for(
    stage: Stage, slots: list[Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # of machines with one core, too
    task = stage.task("a", steps=20, step_s=0.1)
    process = task.start(Slot({}))
    deadline = time.monotonic() + 20
    while not task.link.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = stage.task("a", CellFacts(status="running", attempts=1), steps=20)
    reaper = threading.Thread(target=lambda: isinstance(process, subprocess.Popen) and process.wait())
    reaper.start()
    driver = Driver([found, stage.task("b")], slots, retries=0, watcher=stage.told, write=lambda _: None)
    assert driver.run()
    reaper.join()
    assert stage.happened() == ["begin a", "end a", "begin b", "end b"]
    assert driver.facts["a"] == CellFacts(status="finished", attempts=1)


def test_a_signal_reaches_a_run_that_outlived_its_driver(stage: Stage) -> None:
    task = stage.task("a", **LONG)
    process = task.start(Slot({}))
    reaper = threading.Thread(target=lambda: isinstance(process, subprocess.Popen) and process.wait())
    reaper.start()
    deadline = time.monotonic() + 20
    while not (task.link / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = stage.task("a", CellFacts(status="running", attempts=1), **LONG)
    stage.told.on_look = once(lambda: True, lambda: os.kill(os.getpid(), signal.SIGINT))
    driver = stage.driver(found)
    assert not driver.run()
    reaper.join()
    assert driver.facts["a"].status == "stopped"
    assert stage.happened() == ["begin a", "stop-SIGINT a"]


def test_an_error_of_the_driver_leaves_no_run_without_one(stage: Stage) -> None:
    tasks = [stage.task(name, **LONG) for name in "ab"]

    def break_down() -> None:
        raise ZeroDivisionError

    metrics = [task.link / "metrics.jsonl" for task in tasks]
    stage.told.on_look = once(lambda: all(path.exists() for path in metrics), break_down)
    with pytest.raises(ZeroDivisionError):
        stage.driver(*tasks, at_once=2).run()
    assert sorted(stage.happened()) == ["begin a", "begin b", "stop-SIGTERM a", "stop-SIGTERM b"]


def test_each_place_gives_its_runs_their_own_gpus(stage: Stage) -> None:
    seen: dict[str, Mapping[str, str]] = {}

    def watched(task: Task) -> Task:
        def start(slot: Slot) -> RunProcess:
            seen[task.name] = slot.variables
            return task.start(slot)

        return Task(name=task.name, link=task.link, log=task.log, steps=task.steps, start=start)

    slots = [Slot({"CUDA_VISIBLE_DEVICES": "0,1"}), Slot({"CUDA_VISIBLE_DEVICES": "2,3"})]
    tasks = [watched(stage.task(name, step_s=0.2)) for name in "abcd"]
    assert Driver(tasks, slots, retries=0, watcher=stage.told, write=lambda _: None).run()
    assert seen["a"] != seen["b"]
    # Whichever is free first gets the third.
    assert {variables["CUDA_VISIBLE_DEVICES"] for variables in seen.values()} == {"0,1", "2,3"}


def test_a_terminal_that_is_closed_does_not_end_what_ignores_it(stage: Stage) -> None:
    """As `nohup megarl ablate` does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        task = stage.task("a")
        hang_up = once((task.link / "metrics.jsonl").exists, lambda: os.kill(os.getpid(), signal.SIGHUP))
        stage.told.on_look = hang_up
        driver = stage.driver(task, stage.task("b"))
        assert driver.run()
        assert driver.stopped_by is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class _Ended:
    """A process that ends as it is asked, and interrupts the driver with that."""

    def poll(self) -> int | None:
        os.kill(os.getpid(), signal.SIGINT)
        return 1

    def send_signal(self, number: int) -> None:
        """It has ended."""


def test_a_signal_in_the_last_moment_is_heard(stage: Stage) -> None:
    task = Task(name="a", link=stage.folder / "a", log=stage.folder / "a.log", steps=1, start=lambda _: _Ended())
    driver = stage.driver(task)
    assert not driver.run()
    assert driver.stopped_by == "SIGINT"


def test_a_state_that_cannot_be_read_fails_that_run_alone(stage: Stage) -> None:
    task = stage.task("a")

    def damage(slot: Slot) -> RunProcess:
        process = task.start(slot)
        while process.poll() is None:
            time.sleep(0.02)
        (task.link / "state.json").write_text('{"stat')
        return process

    driver = stage.driver(replace(task, start=damage), stage.task("b"))
    assert not driver.run()
    assert {name: facts.status for name, facts in driver.facts.items()} == {"a": "failed", "b": "finished"}
    assert "state.json" in (driver.facts["a"].message or "")
    found = RunDirectory.open(task.link)
    assert FoundProcess(found).poll() == 1
