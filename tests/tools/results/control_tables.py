"""Stored tables of control.md's five ablations with physics that are known: `Physics` says what the entropy does."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megarl.ablation.cells import load_ablation
from megarl.ablation.stored import StoredAblation
from megarl.report.groups import flatten, is_same_setting
from tests.tools.stored_tables import ROOT, UPDATES, make_stored, noise, write_table

START = 0.7
"""Entropy of the first step."""
Course = Callable[[str, float], float]
"""(setting, share of the run that is done) -> H/H0."""


@dataclass(frozen=True, kw_only=True)
class Physics:
    """Of made-up runs."""

    course: Course
    steps: int = 12
    seeds: tuple[int, ...] = (0, 1, 2)
    noise: float = 0.003
    """Of H/H0, at every step but the first."""
    answers: Mapping[str, float] | None = None
    """mean@8 by setting; None: no evaluation."""
    budget: Callable[[str], float] = lambda setting: -0.05
    """entropy/budget, of every step."""
    knob: float = 1.0
    """Of a loop's updates that steer."""
    predicted: float = 0.0
    """Of a loop's updates, before a wave of 0.1."""
    wanted: float = 0.5
    slope: float = 0.01
    """Nats that an update changes the entropy by, per unit of prediction."""
    raises: float = 0.0
    """Nats that it changes it by where the prediction is 0."""
    switches: bool = False
    """Whether od raises in the run's middle third."""


def made(name: str, physics: Physics) -> StoredAblation:
    """A table of configs/ablations/NAME.toml, whose settings have their configurations."""
    configs = _configs(name)
    loops = {setting for setting, config in configs.items() if config["objective.clip.kind"].startswith("closed_loop")}
    stored = make_stored(
        name,
        functools.partial(_of_step, physics, configs),
        functools.partial(_of_update, physics, loops),
        steps=physics.steps,
        seeds=physics.seeds,
    )
    settings = tuple(
        replace(one, config={**configs[one.name], "train.steps": physics.steps}) for one in stored.facts.settings
    )
    ends = {"value": {"low": 0.1, "high": 0.9, "n": 96}, "difference": {"low": -0.011, "high": 0.042, "n": 96}}
    over_problems = {"balanced": {"eval/held_out/mean@8": ends}} if physics.answers else {}
    return replace(stored, facts=replace(stored.facts, settings=settings, over_problems=over_problems))


@functools.cache
def _configs(name: str) -> dict[str, dict[str, Any]]:
    ablation = load_ablation(ROOT / "configs" / "ablations" / f"{name}.toml", ())
    flat = {run.cell.setting: flatten(run.config.model_dump()) for run in ablation.first_runs}
    return {
        setting: {path: value for path, value in config.items() if not is_same_setting(path)}
        for setting, config in flat.items()
    }


def course_of(physics: Physics, setting: str, seed: int, step: int) -> float:
    """H/H0 before a step."""
    done = (step - 1) / physics.steps
    wobble = physics.noise * noise(setting, seed, step) if step > 1 else 0.0
    return physics.course(setting, done) + wobble


def _of_step(
    physics: Physics, configs: Mapping[str, Mapping[str, Any]], setting: str, seed: int, step: int
) -> dict[str, float]:
    config = configs[setting]
    share = course_of(physics, setting, seed, step)
    budget = physics.budget(setting)
    row = {
        "actor/entropy_over_start": share,
        "actor/old_entropy": START * share,
        "actor/entropy": START * share,
        "actor/lr": 5e-4,
        "reward/mean": 0.5,
        "response_length/mean": 4.0,
        "clip_ratio/low_mean": 0.02,
        "clip_ratio/high_mean": 0.01,
        "entropy/budget": budget,
        "entropy/budget_positive_kept": budget - 0.1,
        "entropy/budget_positive_clipped": 0.0,
        "entropy/budget_negative_kept": 0.1,
        "entropy/budget_negative_clipped": 0.0,
    }
    kind = config["objective.clip.kind"]
    if kind.startswith("closed_loop"):
        row["control/entropy_target"] = START * _target(config, step / physics.steps)
    if kind == "flexec" and config["objective.clip.schedule"] == "od":
        row["control/flexec_raising"] = float(physics.switches and 1 / 3 < step / physics.steps < 2 / 3)
    if config.get("objective.controllers.entropy_coefficient.target"):
        row["control/entropy_coefficient"] = 1e-4 * step
        row["control/entropy_target"] = float(config["objective.controllers.entropy_coefficient.target"])
    if physics.answers and (step % 4 == 0 or step == physics.steps):
        value = physics.answers.get(setting, physics.answers[""]) + 0.002 * noise(setting, seed, "answers")
        row |= {"eval/held_out/mean@8": value, "eval/held_out/pass@8": value + 0.2, "eval/held_out/pass@1": value}
    return row


def _target(config: Mapping[str, Any], done: float) -> float:
    return float(np.interp(done, config["objective.clip.loop.at"], config["objective.clip.loop.entropy"]))


def _of_update(
    physics: Physics, loops: set[str], setting: str, seed: int, step: int, update: int
) -> dict[str, float | None]:
    row = {"actor/lr": 5e-4, "entropy/budget": physics.budget(setting)}
    if setting not in loops:
        return row | {f"control/loop_{name}": None for name in ("knob", "wanted", "predicted", "measured", "entropy")}
    at = (step - 1) * UPDATES + update

    def predicted(number: int) -> float:
        return physics.predicted + 0.1 * math.sin(2.7 * number)

    within = sum(physics.slope * predicted(at - back) + physics.raises for back in range(1, update + 1))
    return row | {
        "control/loop_knob": physics.knob if update else 0.5,
        "control/loop_wanted": physics.wanted,
        "control/loop_predicted": predicted(at),
        "control/loop_measured": predicted(at),
        "control/loop_entropy": START * course_of(physics, setting, seed, step) + within,
    }


def write_made(folder: Path, name: str, physics: Physics) -> None:
    """Into a folder of tables."""
    write_table(folder, made(name, physics))
