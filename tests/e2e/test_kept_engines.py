"""Cells that have the same Ray and engines, one after the other, are those that are each alone, bit for bit."""

import json
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.telemetry.keeper_file import KeeperFacts
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import metrics_of, rollouts_of
from tests.e2e.test_ablation import check_all_finished, logs_of, only_ablation, prepare, run_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RUN_TIMEOUT_S = 400
STEPS = 4
ABLATION = """
name = "clip"
base = "tiny.toml"
seeds = [0, 1]
[overrides]
parallel = { tensor = 1, world_size = 1 }
train.steps = 4
[overrides.eval]
every_steps = 2
samples = 2
[overrides.eval.benchmarks.sums]
data = { source = "reasoning_gym", task = "chain_sum", size = 6, seed = 1000 }
[[settings]]
name = "plain"
[[settings]]
name = "other"
overrides = { objective.clip.high = inf, policy.optimizer.lr = 3e-3, data.train.seed = 5 }
"""
CELLS = ["plain-seed0", "other-seed0", "plain-seed1", "other-seed1"]


def ablate(folder: Path, model: Path, *arguments: str) -> AblationDirectory:
    cwd = prepare(folder, model)
    (cwd / "clip.toml").write_text(ABLATION)
    with Megarl("ablate", "clip.toml", *arguments, cwd=cwd) as command:
        assert command.wait(4 * RUN_TIMEOUT_S) == 0, f"{command.text}\n{logs_of(only_ablation(cwd))}"
        assert command.leftovers() == []
    directory = only_ablation(cwd)
    check_all_finished(directory)
    return directory


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> AblationDirectory:
    return ablate(tmp_path_factory.mktemp("kept"), tiny_model_dir)


def test_cells_with_kept_engines_are_those_alone(kept: AblationDirectory, tmp_path: Path, tiny_model_dir: Path) -> None:
    alone = ablate(tmp_path / "alone", tiny_model_dir, "keep_engines=false", "seeds=[1]")
    assert not alone.keepers.exists()
    assert len(list(kept.keepers.iterdir())) == 1
    for name in CELLS[2:]:
        one, other = run_of(kept, name), run_of(alone, name)
        rows = metrics_of(one)
        assert rows == metrics_of(other)
        assert sum("eval/sums/mean" in json.dumps(row) for row in rows) == 3  # after steps 0, 2 and 4
        for step in range(1, STEPS + 1):
            assert rollouts_of(one, step) == rollouts_of(other, step)
        answers = [path.relative_to(one.path) for path in sorted(one.evaluations.rglob("results.json"))]
        assert len(answers) == 3
        for path in answers:
            numbers = [json.loads((run.path / path).read_text())["benchmarks"] for run in (one, other)]
            assert numbers[0] == numbers[1]
    with_others, by_itself = start_s(kept, CELLS[3]), start_s(alone, CELLS[3])
    print(f"\nup to its first row: {with_others:.0f} s on kept engines, {by_itself:.0f} s on its own")
    assert with_others < by_itself
    assert metrics_of(run_of(kept, CELLS[2])) != metrics_of(run_of(kept, CELLS[3]))


def start_s(directory: AblationDirectory, name: str) -> float:
    """From the start of the cell's process to the row before its first step."""
    (cell,) = (cell for cell in directory.plan().cells if cell.name == name)
    begun = re.findall(r"^--- (\S+)$", directory.log_of(cell).read_text(), re.MULTILINE)
    first = json.loads(run_of(directory, name).metrics_path.read_text().splitlines()[0])
    return float(first["timestamp"]) - datetime.fromisoformat(begun[-1]).astimezone(UTC).timestamp()


def test_each_run_has_its_part_of_the_engines_log(kept: AblationDirectory) -> None:
    texts = [run_of(kept, name).log_path("rollout", 0).read_text() for name in CELLS]
    assert all(text.startswith("--- this engine outlives the run") for text in texts)
    starting = "Initializing a V1 LLM engine"
    assert [starting in text for text in texts] == [True, False, False, False]


def test_when_the_keeper_dies_its_run_alone_fails_and_is_made_anew(
    kept: AblationDirectory, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Killed, in the middle of the second of the two: which is tried again, with a Ray and engines of a new keeper."""
    cwd = prepare(tmp_path, tiny_model_dir)
    (cwd / "clip.toml").write_text(ABLATION)
    with Megarl("ablate", "clip.toml", "seeds=[1]", cwd=cwd) as command:
        second = cwd / "runs"
        command.wait_for(lambda: any(second.glob(f"*/cells/{CELLS[3]}/metrics.jsonl")), 2 * RUN_TIMEOUT_S)
        (path,) = only_ablation(cwd).keepers.iterdir()
        facts = KeeperFacts.read(path)
        assert facts is not None
        psutil.Process(facts.process.pid).send_signal(signal.SIGKILL)
        assert command.wait(2 * RUN_TIMEOUT_S) == 0, f"{command.text}\n{logs_of(only_ablation(cwd))}"
        assert command.leftovers() == []
    directory = only_ablation(cwd)
    facts_of = directory.standings()
    assert [facts_of[name].attempts for name in CELLS[2:]] == [1, 2]
    for name in CELLS[2:]:
        assert metrics_of(run_of(directory, name)) == metrics_of(run_of(kept, name))
