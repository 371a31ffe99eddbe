"""Runs of four updates a step whose entropies follow their budgets: what `megarl theory RUN` must say is known.

A mini-batch is one prompt with two responses of two tokens. The first token of each is clipped on a side, the second
is not. Entropies before a step differ from prompt to prompt, so a mini-batch taken for another gives other numbers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.records import TokenTrace
from megarl.rules import rule_flags
from megarl.telemetry.rollouts import RolloutRow
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.telemetry.rollout_files import write_rows
from tests.telemetry.runs import make_config, write_metrics

UPDATES, RESPONSES = 4, 2
RATE = 0.5
LOGP, RATIO = float(np.log(0.25)), 0.5
Floats = NDArray[np.float64]


def write_practice_run(
    parent: Path,
    *,
    budgets: Floats,
    slope: float,
    seed: int = 0,
    differences: Floats | None = None,
    gaps: Sequence[float] = (0.1, -0.2, 0.1, 0.3),
    traced: bool = True,
    optimizer: dict[str, float] | None = None,
    evaluated: bool = False,
    run: RunDirectory | None = None,
) -> RunDirectory:
    """A finished run. budgets: [steps, UPDATES]; measured is slope * RATE * their sum so far, on every token.

    differences: entropy/clip_low_difference of every update, NaN: none. gaps: N - Q of each mini-batch's first tokens.
    """
    if run is None:
        run = RunDirectory.create(_config(parent, seed, optimizer or {}), source=None, verb="train")
    else:
        run.config_path.write_text(_config_text(optimizer or {}, seed), encoding="utf-8")
    measured = slope * RATE * np.cumsum(np.pad(budgets, ((0, 0), (1, 0))), axis=1)
    base = 1.0 + 0.1 * np.arange(UPDATES)
    lines, rows = [], []
    start = 1.0
    for at, of_step in enumerate(budgets):
        step = at + 1
        for k in range(UPDATES):
            difference = None if differences is None or np.isnan(differences[at, k]) else float(differences[at, k])
            lines.append(_update(step, k, float(of_step[k]), base[k] + measured[at, k], difference))
        entropies = [base[k] + measured[at, k] for k in range(UPDATES)]
        write_rows(run.rollouts_path(step), _rows(step, base, entropies, gaps, traced=traced))
        row: dict[str, float | None] = {"step": step, "actor/old_entropy": start, "reward/mean": 0.1 * step}
        if differences is not None and np.isfinite(differences[at]).any():
            row["entropy/clip_low_difference"] = float(np.nansum(differences[at]))
        rows.append(row | ({"eval/held/mean@4": 0.2 * step, "eval/held/pass@4": 0.3 * step} if evaluated else {}))
        start += float(measured[at, -1])
    run.updates_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_metrics(run.metrics_path, rows)
    run.write_state(RunState(status="finished", step=len(budgets)))
    return run


def _config(parent: Path, seed: int, optimizer: dict[str, float]) -> Any:
    train = {
        "seed": seed,
        "prompts_per_step": UPDATES,
        "samples_per_prompt": RESPONSES,
        "mini_batch_responses": RESPONSES,
    }
    return make_config(parent, name=f"run-{seed}", train=train, policy={"optimizer": {"beta1": 0.0} | optimizer})


def _config_text(optimizer: dict[str, float], seed: int) -> str:
    values = {"beta1": 0.0} | optimizer
    lines = [f"[train]\nseed = {seed}\nmini_batch_responses = {RESPONSES}\n[policy.optimizer]"]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in values.items())]) + "\n"


def _update(step: int, update: int, budget: float, entropy: float, difference: float | None) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "update": update, "actor/lr": RATE, "entropy/budget": budget}
    line["actor/entropy"] = entropy
    if difference is not None:
        line |= {"entropy/clip_low_difference": difference, "entropy/clip_low_contribution": 0.1 * difference}
        line["entropy/budget_removed_low"] = -difference
    return line


def _rows(
    step: int, base: Floats, entropies: Sequence[float], gaps: Sequence[float], *, traced: bool
) -> list[RolloutRow]:
    return [
        _row(step, k, sample, float(base[k]), float(entropies[k]), gaps[k], traced=traced)
        for k in range(UPDATES)
        for sample in range(RESPONSES)
    ]


def _row(step: int, k: int, sample: int, old: float, entropy: float, gap: float, *, traced: bool) -> RolloutRow:
    ones: Any = np.ones(2, np.float32)
    q = 0.25 * (LOGP + entropy)
    trace = TokenTrace(
        sample_id=RESPONSES * k + sample,
        logp=LOGP * ones,
        entropy=entropy * ones,
        expected_q=np.array([q + gap, q + 1.0], np.float32),
        ratio=np.array([RATIO, 1.0], np.float32),
        low=0.8 * ones,
        high=np.inf * ones,
        gate=ones,
        weight=ones,
        coefficient=np.array([2.0, 0.0], np.float32),
        advantage=-ones,
        rule=[rule_flags("clip_low"), rule_flags("")],
    )
    return RolloutRow(
        step=step,
        prompt_index=k,
        sample_index=sample,
        sample_id=RESPONSES * k + sample,
        policy_version=step - 1,
        prompt_text="?",
        response_text="!!",
        prompt_tokens=np.array([1]),
        response_tokens=np.array([2, 3]),
        token_text=("!", "!"),
        behavior_logp=LOGP * ones,
        old_logp=np.array([LOGP - np.log(RATIO), LOGP], np.float32),
        old_entropy=old * ones,
        ref_logp=None,
        trace=trace if traced else None,
        reward=1.0,
        verifier_reward=1.0,
        overlong=0.0,
        bonus=0.0,
        failure=None,
        advantage=-1.0,
        stop_reason="stop",
    )
