"""What a person sees of an ablation's runs, on a terminal and elsewhere."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from megarl.ablation.directory import CellFacts
from megarl.ablation.driver import Task
from megarl.cli import ablate_display
from megarl.cli.ablate_display import AblationDisplay


@dataclass
class Scene:
    """Runs whose metrics a test writes, and what was printed of them."""

    folder: Path
    out: io.StringIO = field(default_factory=io.StringIO)
    now_s: float = 1000.0

    def task(self, name: str, steps: int = 10) -> Task:
        def refuse(_: object) -> None:
            raise AssertionError("a display starts nothing")

        return Task(name=name, link=self.folder / name, log=self.folder / f"{name}.log", steps=steps, start=refuse)  # type: ignore[arg-type]

    def rows(self, name: str, *rows: tuple[int, float, float, float]) -> None:
        """(step, timestamp, reward, entropy) of each."""
        (self.folder / name).mkdir(exist_ok=True)
        names = ("step", "timestamp", "reward/mean", "actor/entropy")
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        (self.folder / name / "metrics.jsonl").write_text(text)

    def display(self, *names: str, terminal: bool = False, height: int = 40, at_once: int = 1) -> AblationDisplay:
        console = Console(file=self.out, force_terminal=terminal, width=100, height=height, color_system=None)
        return AblationDisplay(console, [self.task(name) for name in names], at_once=at_once)

    def lines(self) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.out.getvalue())
        return [line.rstrip() for line in text.splitlines()]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    found = Scene(tmp_path)
    clock: Callable[[], float] = lambda: found.now_s  # noqa: E731
    monkeypatch.setattr(ablate_display.time, "monotonic", clock)
    return found


RUNNING, WAITING = CellFacts(status="running", attempts=1), CellFacts()


def test_off_a_terminal_a_run_has_a_line_when_it_begins_and_ends(scene: Scene) -> None:
    with scene.display("a", "b") as display:
        display.began(scene.task("a"), RUNNING)
        scene.rows("a", (10, 5.0, 0.5, 0.25))
        scene.now_s += 90
        display.ended(scene.task("a"), CellFacts(status="finished", attempts=1))
        display.began(scene.task("b"), CellFacts(status="running", attempts=2))
        failed = CellFacts(status="waiting", attempts=2, message="it broke")
        display.ended(scene.task("b"), failed)
        display.finish({"a": CellFacts(status="finished", attempts=1), "b": failed})
    assert scene.lines()[:-1] == [
        "a: begins",
        "a: finished after step 10 of 10, 90 s",
        "b: begins (attempt 2)",
        "b: failed, and is tried again after step 0 of 10, 0 s: it broke",
    ]
    assert scene.lines()[-1].startswith("2 runs: 1 finished, 1 waiting")


def test_off_a_terminal_what_runs_is_told_once_a_minute(scene: Scene) -> None:
    scene.rows("a", (3, 100.0, 0.125, 2.5), (4, 106.0, 0.25, 2.0))
    facts = {"a": RUNNING, "b": WAITING}
    with scene.display("a", "b") as display:
        for _ in range(130):
            scene.now_s += 1
            display.look(facts)
    # Six steps of six seconds are left of the one, ten of the other.
    assert (
        scene.lines()
        == [
            "a: step 4/10 reward 0.250 entropy 2.000 36 s left",
            "2 runs: 1 running, 1 waiting; about 96 s left",
        ]
        * 2
    )


def test_two_at_a_time_take_half_as_long(scene: Scene) -> None:
    scene.rows("a", (3, 100.0, 0.1, 1.0), (4, 106.0, 0.1, 1.0))
    with scene.display("a", "b", at_once=2) as display:
        display.finish({"a": RUNNING, "b": WAITING})
    assert scene.lines() == ["2 runs: 1 running, 1 waiting; about 48 s left"]


def test_on_a_terminal_every_run_has_its_line(scene: Scene) -> None:
    scene.rows("a", (10, 5.0, 0.5, 0.25))
    scene.rows("b", (3, 100.0, 0.125, 2.5), (4, 106.0, 0.25, 2.0))
    with scene.display("a", "b", "c", terminal=True) as display:
        display.finish(
            {
                "a": CellFacts(status="finished", attempts=1),
                "b": CellFacts(status="running", attempts=2),
                "c": WAITING,
            }
        )
    rows = [line.split() for line in scene.lines()]
    assert ["a", "finished", "10/10", "0.500", "0.250"] in rows
    assert ["b", "running", "(2)", "4/10", "0.250", "2.000", "36", "s"] in rows
    assert ["c", "waiting", "0/10", "-", "-"] in rows


def test_on_a_low_terminal_those_are_shown_of_which_there_is_something_to_see(scene: Scene) -> None:
    names = [f"run{number}" for number in range(30)]
    facts = dict.fromkeys(names, WAITING) | {"run20": RUNNING, "run25": CellFacts(status="failed", attempts=1)}
    with scene.display(*names, terminal=True, height=10) as display:
        display.finish(facts)
    shown = [line.split()[0] for line in scene.lines() if line.startswith("run") and not line.startswith("run ")]
    assert {"run20", "run25"} <= set(shown)
    assert len(set(shown)) == 5
    assert any(line.startswith("30 runs: 28 waiting, 1 running, 1 failed") for line in scene.lines())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_that_is_gone_stops_nothing(scene: Scene, terminal: bool) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    display = scene.display("a", terminal=terminal)
    display.began(scene.task("a"), RUNNING)
    with display:
        scene.out = Gone()
        display._console.file = scene.out
        display.stopping("SIGHUP", ["a"])
        scene.now_s += 100
        display.look({"a": RUNNING})
        display.ended(scene.task("a"), CellFacts(status="stopped", attempts=1))
        display.finish({"a": CellFacts(status="stopped", attempts=1)})
