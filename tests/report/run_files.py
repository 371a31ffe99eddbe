"""Run directories with numbers that are known, for tests of comparisons."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from megarl.records import TokenTrace
from megarl.rules import rule_flags
from megarl.telemetry.rollouts import RolloutRow
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.telemetry.rollout_files import write_rows
from tests.telemetry.runs import make_config, write_metrics


def entropy_at(high: float, seed: int, step: int) -> float:
    return high + 0.1 * seed + math.exp(-step / 10)


def write_run(parent: Path, *, high: float, seed: int, steps: int = 6, verb: str = "train") -> RunDirectory:
    """A finished run with clip.high and train.seed; evaluated before its first and after its last step."""
    config = make_config(
        parent, name=f"run-{seed}", objective={"clip": {"low": 0.2, "high": high}}, train={"seed": seed}
    )
    run = RunDirectory.create(config, source=None, verb=verb)
    rows: list[dict[str, float | None]] = [{"step": 0, **_evaluation(0.1 + 0.01 * seed)}]
    rows += [
        {
            "step": step,
            "actor/entropy": entropy_at(high, seed, step),
            "actor/old_entropy": entropy_at(high, seed, step),
            "entropy/budget": -float(step),
            "actor/lr": 0.5,
            "clip_ratio/low_mean": 0.01 * step,
            "timing_s/step": 10.0,
            "timing_s/update": 6.0 + seed,
            "reward/mean": None if step == 3 else 0.5,
        }
        for step in range(1, steps + 1)
    ]
    rows[-1] |= _evaluation(0.2 + 0.01 * seed)
    write_metrics(run.metrics_path, rows)
    for step, share in ((0, 0.1 + 0.01 * seed), (steps, 0.2 + 0.01 * seed)):
        write_results(run, step, share)
    run.write_state(RunState(status="finished", step=steps))
    return run


def _evaluation(share: float) -> dict[str, float | None]:
    return {"eval/held/mean@4": share, "eval/held/pass@4": 2 * share, "eval/held/pass@1": share}


def write_results(run: RunDirectory, step: int, share: float) -> None:
    """results.json of an evaluation: pass@k is share * (1 + k / 4)."""
    measures = {f"pass@{k}": {"value": share * (1 + k / 4), "low": share, "high": 2.5 * share} for k in (1, 2, 3, 4)}
    folder = run.evaluations / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"model": "x", "benchmarks": {"held": measures}}))


def write_traced(run: RunDirectory, step: int, ratios: list[float], advantages: list[float]) -> None:
    """Rollouts of a step: a traced response with these, and one that was not traced."""
    num = len(ratios)
    ones: Any = np.ones(num, np.float32)
    trace = TokenTrace(
        sample_id=0,
        logp=-ones,
        entropy=ones,
        expected_q=ones,
        ratio=np.array(ratios, np.float32),
        low=0.8 * ones,
        high=1.2 * ones,
        gate=ones,
        weight=ones,
        coefficient=ones,
        advantage=np.array(advantages, np.float32),
        rule=[rule_flags("")] * num,
    )
    shared: dict[str, Any] = {
        "step": step,
        "prompt_index": 0,
        "policy_version": step - 1,
        "prompt_text": "?",
        "response_text": "!" * num,
        "prompt_tokens": (1,),
        "response_tokens": tuple(range(num)),
        "token_text": ("!",) * num,
        "behavior_logp": -ones,
        "old_logp": -ones,
        "old_entropy": ones,
        "ref_logp": None,
        "reward": 1.0,
        "verifier_reward": 1.0,
        "overlong": 0.0,
        "bonus": 0.0,
        "failure": None,
        "advantage": 0.5,
        "stop_reason": "stop",
    }
    rows = [
        RolloutRow(sample_id=number, sample_index=number, trace=trace if number == 0 else None, **shared)
        for number in (0, 1)
    ]
    write_rows(run.rollouts_path(step), rows)
