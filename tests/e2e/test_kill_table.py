"""Killed at every moment of a step, a run ends as the one that nobody killed: in every number outside the clock.

One run per configuration is killed at one moment after the other, going on from its newest checkpoint each time. What
it leaves is compared with an uninterrupted run. `pytest -s` shows the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.configuration import write_tiny_config
from tests.e2e.killed_at import MOMENTS
from tests.e2e.resumed_runs import (
    Kept,
    exported,
    latest,
    metrics_of,
    rollouts_of,
    saved_state,
    train_to_the_end,
    train_until_killed,
)

STEPS = 6
PLAN = {
    "generate": 1,  # before there is a checkpoint: it starts over
    "score": 3,
    "update 0": 3,
    "update 1": 4,
    "publication, before the verdict": 4,
    "publication, after the verdict": 4,
    "save, before the manifest": 4,
    "save, before the rename": 4,
    "save, after the manifest": 4,
    "report": 5,
    "between steps": 6,
}
"""The step of each; the run saves itself after every second one."""
COMMON = (f"train.steps={STEPS}", "checkpoint.every_steps=2", "logging.tensorboard=true")
CONTROLLED = """
[objective]
clip = { kind = "flexec", schedule = "od" }
advantage = { method = "smoothed" }
sampler = { kind = "dynamic", max_generations = 4, when_exhausted = "fill" }
auxiliary = { kl = { coefficient = 0.01, estimator = "k3" }, entropy = { coefficient = 1e-3 } }
controllers = { reference_reset = { every_steps = 3 }, aer = {} }
"""
"""Every piece of the driver's state moves: histories, hysteresis, a coefficient, the reference."""
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "data 2, distributed optimizer": ("parallel.tensor=1", "parallel.world_size=2"),
    "tensor 2 x pipeline 2": ("parallel.tensor=2", "parallel.pipeline=2", "parallel.world_size=4"),
    "controllers and histories": ("controlled.toml", "parallel.tensor=1", "parallel.world_size=1"),
}


@dataclass(frozen=True)
class Line:
    """Of the table."""

    moment: str
    killed_in: int
    went_on_after: int
    untouched: bool

    def __str__(self) -> str:
        after = f"step {self.went_on_after}" if self.went_on_after else "the start"
        rows = "untouched" if self.untouched else "CHANGED"
        return f"{self.moment:<34} step {self.killed_in}     {after:<12} {rows}"


def kill_one_after_the_other(arguments: tuple[str, ...], config: Path, cwd: Path) -> Iterator[Line]:
    """Ends with the run finished."""
    begun: tuple[str | Path, ...] = (config, *arguments)
    pending: tuple[str, int, Kept] | None = None
    for moment, step in [*PLAN.items(), (None, 0)]:
        if moment is None:
            train_to_the_end(*begun, cwd=cwd)
        else:
            train_until_killed(moment, step, *begun, cwd=cwd)
        if pending is not None:
            name, killed_in, kept = pending
            yield Line(name, killed_in, kept.step, kept.is_untouched())
        pending = (moment or "", step, Kept.of(latest(cwd)))
        begun = ("--resume", "runs/latest")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kill_table(name: str, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PLAN.keys() == MOMENTS.keys()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for cwd in (straight, killed):
        cwd.mkdir()
        (cwd / "controlled.toml").write_text(CONTROLLED)
    config = write_tiny_config(tmp_path, tiny_model_dir)
    arguments = (*CONFIGURATIONS[name], *COMMON)
    train_to_the_end(config, *arguments, cwd=straight)
    lines = []
    with capsys.disabled():
        print(f"\n\n{name}: {STEPS} steps, saved after every second\n")
        print(f"{'killed in':<34} {'':<10} {'went on after':<12}  earlier rows")
        for line in kill_one_after_the_other(arguments, config, killed):
            print(line, flush=True)
            lines.append(line)
    run, expected = latest(killed), latest(straight)
    equal = metrics_of(run) == metrics_of(expected)
    with capsys.disabled():
        print(f"metrics and updates of all {STEPS} steps: {'identical' if equal else 'DIFFERENT'}\n")
    assert [line.moment for line in lines if not line.untouched] == []
    assert metrics_of(run) == metrics_of(expected)
    for step in range(1, STEPS + 1):
        assert rollouts_of(run, step) == rollouts_of(expected, step)
    assert exported(run) == exported(expected)
    assert saved_state(run) == saved_state(expected)
    assert scalars_of(run.tensorboard) == scalars_of(expected.tensorboard)
    assert run.read_state() == expected.read_state()
    assert len(run.read_versions()["went_on"]) == len(PLAN)


def scalars_of(directory: Path) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(directory))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("actor/grad_norm")]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    return found
