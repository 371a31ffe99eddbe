"""Configurations and metric rows that several tests of this folder use."""

import json
import math
from pathlib import Path
from typing import Any

from megarl.config.run import RunConfig


def make_config(directory: Path, **sections: Any) -> RunConfig:
    """A small run below `directory`; `sections` replace top-level sections."""
    table: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": "models/tiny"},
        "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
        "reward": {"verifier": {"kind": "reasoning_gym"}},
        "objective": {"clip": {"low": 1.0, "high": math.inf}},
        "logging": {"directory": str(directory)},
    }
    return RunConfig.model_validate(table | sections)


def make_row(step: int) -> dict[str, float | None]:
    """Plausible metrics of a step, every name that a figure reads."""
    row: dict[str, float | None] = {
        "step": step,
        "policy_version": step,
        "reward/mean": 0.2 + 0.1 * step,
        "reward/std": 0.4,
        "actor/entropy": 1.0 / step,
        "actor/entropy_response_mean": 1.1 / step,
        "actor/ppo_kl": 1e-4,
        "actor/grad_norm": 0.3,
        "clip_ratio/low_mean": 0.001,
        "clip_ratio/high_mean": 0.002,
        "clip_ratio/dual_mean": 0.0,
        "clip_ratio/low_of_negative": 0.002,
        "clip_ratio/high_of_positive": 0.004,
        **{f"clip_ratio/{side}_q{q}": 0.001 * q for side in ("low", "high") for q in (1, 2, 3, 4, 5)},
        "clip_ratio/low_effective": 0.0005,
        "clip_ratio/high_effective": 0.001,
        "clip_bound/low_mean": 0.2 + 0.01 * step,
        "clip_bound/high_mean": 0.2,
        "control/flexec_low_at_0.5": 0.2,
        "control/flexec_high_at_0.5": 0.375,
        "control/loop_wanted": 0.1,
        "control/loop_measured": 0.08,
        "control/entropy_coefficient": 0.0,
        "control/entropy_target": 0.2,
        "control/positive_scale": 0.95,
        "control/negative_scale": 1.25,
        "control/focal_power": 1.5,
        "control/group_entropy_low": 0.5,
        "control/group_entropy_high": 0.75,
        "control/stare_acts": 1.0,
        "control/reference_resets": 0.0,
        "rule/tis_frac": 0.05,
        **{
            f"entropy/clip_{side}_{name}": 0.01 * step
            for side in ("low", "high", "dual")
            for name in ("contribution", "difference", "surprisal")
        },
        **{f"entropy/region_e{i}": 0.1 * i for i in (1, 2, 3, 4)},
        "entropy/budget_positive_kept": -0.02,
        "entropy/budget_positive_clipped": 0.0,
        "entropy/budget_negative_kept": 0.03,
        "entropy/budget_negative_clipped": -0.001,
        **{f"entropy/budget_removed_{side}": -0.001 for side in ("low", "high", "dual")},
        "response_length/mean": 300.0,
        "response_length/max": 512.0,
        "rollout/logp_diff_mean": 0.01,
        "rollout/logp_diff_max": 0.2,
        "perf/tokens_per_s": 1234.5,
    }
    parts = {"pack": 0.2, "checksum": 0.1, "wire": 0.4, "drain": 0.0, "install": 0.3, "resume": 0.1}
    row |= {f"timing_s/publish_{part}": seconds for part, seconds in parts.items()}
    phases = {"generate": 20.0, "reward": 1.0, "old_logp": 3.0, "update": 14.0, "publish": 1.5, "step": 40.0}
    return row | {f"timing_s/{phase}": seconds for phase, seconds in phases.items()}


def write_metrics(path: Path, rows: list[dict[str, float | None]]) -> None:
    """`rows` as a metrics.jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
