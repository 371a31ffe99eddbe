"""Cells that have the same Ray and engines, one after the other, are those that are each alone, bit for bit."""

import json
import re
import signal
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.telemetry.keeper_file import KeeperFacts
from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import metrics_of, rollouts_of
from tests.e2e.test_ablation import check_all_finished, logs_of, only_ablation, prepare, run_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RUN_TIMEOUT_S = 400
STEPS = 4
ABLATION = """
name = "clip"
base = "tiny.toml"
seeds = [1]
[overrides]
parallel = { tensor = 1, world_size = 1 }
train.steps = 4
[overrides.eval]
every_steps = 2
samples = 2
[overrides.eval.benchmarks.sums]
data = { source = "reasoning_gym", task = "chain_sum", size = 6, seed = 1000 }
"""
ONE, TWO = (f"{{name = '{name}', overrides = {{logging = {{traced_responses = {traced}}}}}}}" for name, traced in (
    ("one", 100), ("two", 101),
))  # fmt: skip
"""Two that differ in what is written down of more responses than there are."""
OTHER = (
    "{name = 'other', overrides = {objective = {clip = {high = inf}}, policy = {optimizer = {lr = 3e-3}}, "
    "data = {train = {seed = 5}}}}"
)


def ablation_of(*settings: str) -> str:
    return f"settings=[{', '.join(settings)}]"


def ablate(folder: Path, model: Path, *arguments: str) -> AblationDirectory:
    cwd = prepare(folder, model)
    (cwd / "clip.toml").write_text(ABLATION)
    with Megarl("ablate", "clip.toml", *arguments, cwd=cwd) as command:
        assert command.wait(3 * RUN_TIMEOUT_S) == 0, f"{command.text}\n{logs_of(only_ablation(cwd))}"
        assert command.leftovers() == []
    directory = only_ablation(cwd)
    check_all_finished(directory)
    return directory


def check_same(one: RunDirectory, other: RunDirectory) -> None:
    """In every number and every token."""
    rows = metrics_of(one)
    assert rows == metrics_of(other)
    assert sum("eval/sums/mean" in json.dumps(row) for row in rows) == 3  # after steps 0, 2 and 4
    for step in range(1, STEPS + 1):
        assert rollouts_of(one, step) == rollouts_of(other, step)
    results = [path.relative_to(one.path) for path in sorted(one.evaluations.rglob("results.json"))]
    assert len(results) == 3
    for path in results:
        numbers = [json.loads((run.path / path).read_text())["benchmarks"] for run in (one, other)]
        assert numbers[0] == numbers[1]


def start_s(directory: AblationDirectory, name: str) -> float:
    """From the start of the cell's process to its first row, of what it begins with."""
    (cell,) = (cell for cell in directory.plan().cells if cell.name == name)
    begun = re.findall(r"^--- (\S+)$", directory.log_of(cell).read_text(), re.MULTILINE)
    first = json.loads(run_of(directory, name).metrics_path.read_text().splitlines()[0])
    return float(first["timestamp"]) - datetime.fromisoformat(begun[-1]).timestamp()


def test_cells_on_kept_engines_are_those_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Another one before them has left its weights, and has filled the caches."""
    kept = ablate(tmp_path / "kept", tiny_model_dir, ablation_of(ONE, OTHER, TWO))
    assert len(list(kept.keepers.iterdir())) == 1
    alone = ablate(tmp_path / "alone", tiny_model_dir, ablation_of(TWO), "keep_engines=false")
    assert not alone.keepers.exists()
    one, other, two = (run_of(kept, name) for name in ("one-seed1", "other-seed1", "two-seed1"))
    check_same(one, two)
    check_same(two, run_of(alone, "two-seed1"))
    assert metrics_of(other) != metrics_of(two)
    texts = [run.log_path("rollout", 0).read_text() for run in (one, other, two)]
    assert all(text.startswith("--- this engine outlives the run") for text in texts)
    assert ["Initializing a V1 LLM engine" in text for text in texts] == [True, False, False]
    seconds = {name: start_s(kept, name) for name in ("one-seed1", "other-seed1", "two-seed1")}
    by_itself = start_s(alone, "two-seed1")
    print(f"\nseconds up to the first row: {seconds} with a keeper, {by_itself:.0f} alone")
    assert seconds["two-seed1"] < by_itself


def test_engines_that_take_turns_with_the_policy_are_kept_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Two of them: they sleep while the next run's policy starts, which publishes to all."""
    layout = ("cluster.colocate=true", "rollout.engines=2", "parallel.world_size=2")
    kept = ablate(tmp_path, tiny_model_dir, ablation_of(ONE, OTHER, TWO), *layout)
    assert len(list(kept.keepers.iterdir())) == 1
    check_same(run_of(kept, "one-seed1"), run_of(kept, "two-seed1"))


def test_after_a_signal_and_when_its_keeper_dies_a_run_is_made_anew(tmp_path: Path, tiny_model_dir: Path) -> None:
    """The second of two, which has the engines of the first, is interrupted in its first step. The ablation goes on
    with a new keeper, which is killed; the run is tried again with a third."""
    cwd = prepare(tmp_path, tiny_model_dir)
    (cwd / "clip.toml").write_text(ABLATION)
    with Megarl("ablate", "clip.toml", ablation_of(ONE, TWO), cwd=cwd) as command:
        rows = "runs/*/cells/two-seed1/metrics.jsonl"
        command.wait_for(lambda: any(cwd.glob(rows)), 2 * RUN_TIMEOUT_S)
        command.send_signal(signal.SIGINT)
        assert command.wait(120) == 130, command.text
        assert command.leftovers() == []
    directory = only_ablation(cwd)
    (first,) = directory.keepers.iterdir()
    with Megarl("ablate", "--resume", directory.path, cwd=cwd) as command:
        second = directory.keepers / f"{first.name}-2"
        command.wait_for(lambda: has_made_a_step(run_of(directory, "two-seed1"), second), RUN_TIMEOUT_S)
        facts = KeeperFacts.read(second)
        assert facts is not None
        psutil.Process(facts.process.pid).send_signal(signal.SIGKILL)
        assert command.wait(2 * RUN_TIMEOUT_S) == 0, f"{command.text}\n{logs_of(directory)}"
        assert command.leftovers() == []
    assert [facts.attempts for facts in directory.standings().values()] == [1, 3]
    assert len(list(directory.keepers.iterdir())) == 3
    check_same(run_of(directory, "one-seed1"), run_of(directory, "two-seed1"))


def has_made_a_step(run: RunDirectory, keeper: Path) -> bool:
    """With engines of this keeper."""
    log = run.log_path("rollout", 0)
    return log.is_file() and str(keeper) in log.read_text() and run.read_state().step > 0
