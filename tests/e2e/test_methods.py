"""Every method file trains two real steps on the tiny model and logs its accounting."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megarl.config.loader import load_config
from megarl.rules import rule_names
from megarl.telemetry.rollouts import RolloutRow, read_rollouts
from tests.e2e.configuration import write_tiny_config

ROOT = Path(__file__).parents[2]
METHODS = sorted((ROOT / "configs" / "methods").glob("*.toml"))
ALWAYS_LOGGED = (
    "actor/entropy",
    "actor/entropy_response_mean",
    "actor/entropy_over_start",
    "actor/pg_loss",
    "actor/grad_norm",
    "actor/pg_clipfrac",
    "entropy/budget",
    "entropy/clip_low_contribution",
    "entropy/clip_high_contribution",
    "entropy/region_e1",
    "reward/mean",
)
QUICK = ("flexec-od", "calibrl")


def test_methods_train_two_steps(tiny_model_dir: Path, tmp_path: Path) -> None:
    check_methods([path for path in METHODS if path.stem in QUICK], tiny_model_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_method_trains_two_steps(tiny_model_dir: Path, tmp_path: Path) -> None:
    check_methods(METHODS, tiny_model_dir, tmp_path)


def check_methods(methods: list[Path], model: Path, directory: Path) -> None:
    base = write_tiny_config(directory, model)
    program = [sys.executable, "-m", "tests.e2e.method_runs", str(base), str(directory / "runs"), *map(str, methods)]
    with (directory / "output.txt").open("w") as output:
        code = subprocess.run(program, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    assert code == 0, (directory / "output.txt").read_text()[-6000:]
    for method in methods:
        (run,) = (directory / "runs").glob(f"{method.stem}-train-*")
        check_run(run, method.stem)


def check_run(run: Path, method: str) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [json.loads(line) for line in (run / "updates.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2], method
    per_step = len(updates) // 2
    assert [(row["step"], row["update"]) for row in updates] == [(s, u) for s in (1, 2) for u in range(per_step)], (
        method
    )
    for line in [*lines, *({**lines[0], **update} for update in updates)]:
        missing = [name for name in ALWAYS_LOGGED if name not in line]
        assert not missing, f"{method}: {missing}"
        assert all(math.isfinite(line[name]) for name in ALWAYS_LOGGED), method
        shares = sum(line[f"entropy/region_e{region}"] for region in (1, 2, 3, 4))
        assert shares <= 1 + 1e-9, method
    objective = load_config(run / "config.toml").objective
    rows = read_rollouts(run / "rollouts" / "step-000002.parquet")
    acted = {rule_names(int(flags)) for row in rows if row.trace for flags in row.trace.rule}
    for side in ("low", "high"):
        # Every response is traced here, so what the step counts as clipped must be found among its tokens.
        found = any(f"clip_{side}" in rule or "dppo" in rule for rule in acted)
        assert found or lines[1][f"clip_ratio/{side}_mean"] == 0, method
    check_recomputed(rows, [update for update in updates if update["step"] == 2], method)
    for row in rows:
        assert row.trace is not None, method
        assert len(row.trace.logp) == len(row.response_tokens) == len(row.trace.rule), method
        assert (row.ref_logp is not None) or objective.auxiliary.kl is None, method


def check_recomputed(rows: list[RolloutRow], updates: list[dict[str, Any]], method: str) -> None:
    """The parquet file alone gives the theorem's terms and the budget of every update."""
    per_update = len(rows) // len(updates)
    rows = sorted(rows, key=lambda row: row.sample_id)
    for number, update in enumerate(updates):
        terms: dict[str, list[float]] = {"clip_low_contribution": [], "clip_high_contribution": [], "budget": []}
        for row in rows[number * per_update : (number + 1) * per_update]:
            trace = row.trace
            assert trace is not None
            logp = trace.logp.astype(np.float64)
            gap = trace.expected_q - np.exp(logp) * (logp + trace.entropy)
            mass = np.exp(logp - row.old_logp) * gap
            terms["clip_low_contribution"] += (mass * (trace.ratio < trace.low)).tolist()
            terms["clip_high_contribution"] += (mass * (trace.ratio > trace.high)).tolist()
            terms["budget"] += (trace.coefficient * gap).tolist()
        for name, values in terms.items():
            divisor = 1 if name == "budget" else len(values)
            size = math.fsum(map(abs, values)) / divisor
            expected = math.fsum(values) / divisor
            assert update[f"entropy/{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-6 * size), f"{method}: {name}"
