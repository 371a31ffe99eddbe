"""`megarl train` and `megarl sft` from the outside: exit code, run directory, numbers, and nothing left behind.

The run that is looked at was killed in its fourth step and went on: the steps that it repeats are those that it made,
and in the end nothing tells it from one that was never killed.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megarl.config.loader import load_config
from megarl.telemetry.rollouts import RolloutRow, read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import Kept, latest, metrics_of, rollouts_of, train_until_killed

TIMEOUT_S = 400
STEPS = 4
SIZES = (f"train.steps={STEPS}",)
NAMES = {
    *("step", "policy_version", "reward/mean"),
    *("actor/entropy", "actor/pg_loss", "actor/ppo_kl", "actor/grad_norm", "actor/pg_clipfrac"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/dual_mean"),
    *("response_length/mean", "rollout/logp_diff_mean", "rollout/logp_diff_max"),
    *(f"timing_s/{phase}" for phase in ("generate", "reward", "old_logp", "update", "publish", "step")),
    "perf/tokens_per_s",
}


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    code: int
    text: str
    directory: RunDirectory
    leftovers: list[str]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory.metrics_path)


def run_to_end(cwd: Path, verb: str, model: Path, *overrides: str) -> Ended:
    """`megarl verb` on the tiny configuration in `cwd`."""
    cwd.mkdir(exist_ok=True)
    with Megarl(verb, write_tiny_config(cwd, model), *overrides, cwd=cwd) as run:
        code = run.wait(TIMEOUT_S)
        assert code == 0, run.text
        return Ended(code, run.text, run.directory, run.leftovers())


@dataclass(frozen=True)
class Killed:
    """A run as it was when it had been killed."""

    directory: RunDirectory
    kept: Kept
    metrics: list[dict[str, Any]]
    """Rows of steps, then of updates, without the clock."""
    drawn: dict[int, list[RolloutRow]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Killed:
    """Two tensor-parallel policy ranks, one engine, two updates a step; killed before the second of step 4."""
    cwd = tmp_path_factory.mktemp("train")
    config = write_tiny_config(cwd, tiny_model_dir)
    train_until_killed("update 1", STEPS, config, *SIZES, "checkpoint.every_steps=2", cwd=cwd)
    run = latest(cwd)
    return Killed(run, Kept.of(run), metrics_of(run), {step: rollouts_of(run, step) for step in (1, 2, 3)})


@pytest.fixture(scope="module")
def ended(killed: Killed) -> Ended:
    """The same, gone on with to its end."""
    cwd = killed.directory.path.parents[1]
    with Megarl("train", "--resume", "runs/latest", cwd=cwd) as run:
        assert run.wait(TIMEOUT_S) == 0, run.text
        return Ended(0, run.text, latest(cwd), run.leftovers())


def test_a_killed_run_repeats_its_steps_bit_for_bit(killed: Killed, ended: Ended) -> None:
    run = ended.directory
    assert run.path == killed.directory.path
    assert killed.kept.step == 2
    assert [row["step"] for row in killed.metrics] == [1, 2, 3, *(1, 1), *(2, 2), *(3, 3), 4]
    assert "resume after step 2 of 4, from runs/" in ended.text
    assert "cut    metrics.jsonl: 1 rows beyond step 2" in ended.text
    assert "cut    updates.jsonl: 3 rows beyond step 2" in ended.text
    assert killed.kept.is_untouched()
    again = metrics_of(run)
    assert [row["step"] for row in again] == [1, 2, 3, 4, *(1, 1), *(2, 2), *(3, 3), *(4, 4)]
    # Of the fourth step the killed process had made one update.
    assert [row for row in again if row["step"] < 4] == [row for row in killed.metrics if row["step"] < 4]
    assert again[-2] == killed.metrics[-1]
    assert {step: rollouts_of(run, step) for step in (1, 2, 3)} == killed.drawn
    steps = [event for event in json.loads(run.timeline_path.read_text()) if event["name"] == "step"]
    assert [event["args"]["step"] for event in steps] == [1, 2, 3, 4]


def test_nothing_is_left_behind(ended: Ended) -> None:
    assert ended.leftovers == []


def test_the_directory_says_what_ran(ended: Ended, tiny_model_dir: Path) -> None:
    directory = ended.directory
    assert load_config(directory.config_path).model.path == str(tiny_model_dir)
    assert (directory.path / "config.source").read_text().startswith('\nname = "tiny"')
    versions = directory.read_versions()
    assert versions["verb"] == "train"
    assert versions["packages"].keys() >= {"torch", "megatron-core", "ray", "transformers"}
    state = directory.read_state()
    assert (state.status, state.step, state.message) == ("finished", STEPS, None)
    # 4 steps of 4 prompts.
    assert (state.progress["step"], state.progress["policy_version"]) == (STEPS, STEPS)
    owners = state.progress["owners"]
    sampler = {"num_prompts": 16, "seed": 0, "shuffle": True, "num_drawn": 16}
    # By the digest the same prompts are known again; which it is depends on the generated problems.
    assert owners["sampler"] == sampler | {"digest": owners["sampler"]["digest"]}
    assert owners["controllers"]["step"] == STEPS
    assert owners["reporter"] == {"metrics": {"JsonlSink": 0}, "updates": {"JsonlSink": 0}}


def test_metrics_have_every_name_and_finite_values(ended: Ended) -> None:
    lines = [json.loads(line) for line in ended.directory.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["policy_version"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert NAMES - line.keys() == set()
        assert [name for name in NAMES if not math.isfinite(line[name])] == []
        assert line["reward/mean"] in [count / 16 for count in range(17)]
        assert 0 < line["actor/entropy"] < math.log(512)
        assert line["actor/pg_clipfrac"] == pytest.approx(line["clip_ratio/low_mean"] + line["clip_ratio/high_mean"])
        phases = sum(line[f"timing_s/{phase}"] for phase in ("generate", "reward", "old_logp", "update", "publish"))
        assert 0 < phases <= line["timing_s/step"]
    assert len({line["actor/entropy"] for line in lines}) == STEPS


def test_engines_sample_from_the_published_weights(ended: Ended) -> None:
    """In float32 trainer and vLLM agree at every step, which they only do on the same weights."""
    for line in ended.metrics:
        assert line["rollout/logp_diff_max"] < 1e-3
        assert line["actor/lr"] == 1e-3


def test_rollouts_hold_every_token(ended: Ended) -> None:
    moved = []
    for step in range(1, STEPS + 1):
        rows = read_rollouts(ended.directory.rollouts_path(step))
        assert [(row.step, row.policy_version) for row in rows] == [(step, step - 1)] * 16
        assert [row.sample_index for row in rows] == [0, 1, 2, 3] * 4
        assert len({row.prompt_index for row in rows}) == 4
        for row in rows:
            assert 1 <= len(row.response_tokens) <= 8
            assert row.ref_logp is not None
            assert len(row.behavior_logp) == len(row.old_logp) == len(row.ref_logp) == len(row.response_tokens)
            assert row.old_logp == pytest.approx(row.behavior_logp, abs=1e-3)
            assert row.reward in (0.0, 1.0)
        moved.append(max(float(abs(row.old_logp - row.ref_logp).max()) for row in rows if row.ref_logp is not None))
        # Dr. GRPO: reward minus the mean of its group of four.
        for start in range(0, 16, 4):
            group = rows[start : start + 4]
            mean = sum(row.reward for row in group) / 4
            assert [row.advantage for row in group] == pytest.approx([row.reward - mean for row in group])
    # Before the first update the policy is the reference; afterwards it is not, and far from it in vLLM's eyes too.
    assert moved[0] < 1e-5
    assert min(moved[1:]) > 1e-2


def test_prompts_of_an_epoch_differ(ended: Ended) -> None:
    drawn = [
        row.prompt_index
        for step in range(1, STEPS + 1)
        for row in read_rollouts(ended.directory.rollouts_path(step))[::4]
    ]
    assert len(set(drawn)) == 16


def test_the_exported_checkpoint_is_the_trained_model(ended: Ended, tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = ended.directory.exports / "step-000004"
    trained = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, local_files_only=True, dtype=torch.float32)
    unchanged = [
        name
        for (name, new), (_, old) in zip(trained.named_parameters(), start.named_parameters(), strict=True)
        if torch.equal(new, old)
    ]
    assert unchanged == []
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert tokenizer("1 + 2 =")["input_ids"] == AutoTokenizer.from_pretrained(tiny_model_dir)("1 + 2 =")["input_ids"]


def test_report_figures_timeline_and_logs(ended: Ended) -> None:
    directory = ended.directory
    assert "<html" in directory.report_path.read_text()
    assert len(list(directory.figures.glob("*.png"))) >= 6
    spans = json.loads(directory.timeline_path.read_text())
    assert {"generate", "update", "publish"} <= {span.get("name") for span in spans}
    logs = {path.name: path.stat().st_size for path in directory.logs.iterdir()}
    assert logs.keys() == {"controller-0.log", "policy-0.log", "policy-1.log", "rollout-0.log"}
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(ended: Ended, tmp_path: Path, tiny_model_dir: Path) -> None:
    again = run_to_end(tmp_path, "train", tiny_model_dir, *SIZES)
    assert [without_timings(line) for line in again.metrics] == [without_timings(line) for line in ended.metrics]


def without_timings(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith(("timing_s/", "perf/"))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_replicas_and_two_engines_train_alike(ended: Ended, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Neither the layout of the policy nor the number of engines changes what is sampled or learned."""
    other = run_to_end(
        tmp_path,
        "train",
        tiny_model_dir,
        *SIZES,
        "parallel.tensor=1",
        "rollout.engines=2",
        "rollout.publish.transport=network",
    )
    assert other.leftovers == []
    for line, expected in zip(other.metrics, ended.metrics, strict=True):
        assert line["rollout/logp_diff_max"] < 1e-3
        for name in ("reward/mean", "actor/entropy", "actor/pg_loss", "actor/kl_loss", "actor/grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    logs = {path.name for path in other.directory.logs.iterdir()}
    assert logs == {"controller-0.log", "policy-0.log", "policy-1.log", "rollout-0.log", "rollout-1.log"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_supervised_warm_start_then_training_from_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    warm = run_to_end(tmp_path / "sft", "sft", tiny_model_dir, "sft.steps=20")
    losses = [line["sft/loss"] for line in warm.metrics]
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]
    # A random model spreads its guesses over the vocabulary.
    assert losses[0] == pytest.approx(math.log(448), rel=0.1)
    assert warm.leftovers == []
    checkpoint = warm.directory.exports / "step-000020"
    trained = run_to_end(tmp_path / "train", "train", checkpoint, "train.steps=2")
    first = trained.metrics[0]
    assert first["rollout/logp_diff_max"] < 1e-3
    # It starts where the warm start ended: far below the entropy of a random model.
    assert first["actor/entropy"] < 0.8 * math.log(448)
