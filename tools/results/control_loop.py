"""Numbers of closed-loop clipping: how well each setting keeps to a target, how far bounds reach, what predictions say.

A target is that of one or more loops, relative to the entropy a run begins with. Settings without a loop are held
against it, too: all of them where the target is constant, the control where it moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megarl.report.figure import Values
from megarl.report.run_data import RunData
from results.control_words import config_of
from results.holding import (
    ChangeFit,
    Held,
    LoopUpdates,
    Reach,
    averaged,
    changes_of_steps,
    changes_of_updates,
    estimate_bias,
    fit_change,
    hold_of,
    reach_of,
    relative_errors,
)
from results.reading import Results

_SAME = 1e-3
"""Targets that differ by less, relative to the start, are one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What some loops steer to."""

    label: str
    constant: bool
    loops: tuple[str, ...]
    settings: tuple[str, ...]
    """Those that are held against it: the loops, and others."""
    share_K: Values
    """For the end of each step."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One run of a loop: what the prediction says of the change."""

    updates: ChangeFit | None
    """Of updates, from the step's beginning on: see `holding.changes_of_updates`."""
    averaged: ChangeFit | None
    """Of updates, with the predictions averaged as the optimizer's momentum averages gradients."""
    steps: ChangeFit | None
    estimate_bias: float | None
    """Of the loop's estimate of the entropy, nats: see `holding.estimate_bias`."""


def is_loop(results: Results, setting: str) -> bool:
    return str(config_of(results, setting).get("objective.clip.kind", "")).startswith("closed_loop")


def find_targets(results: Results) -> list[Target]:
    """In the order of the settings."""
    names = [one.name for one in results.facts.settings if results.has(one.name)]
    groups: list[tuple[Values, list[str]]] = []
    for name in names:
        if not is_loop(results, name):
            continue
        share_K = _target_share(next(iter(results.runs[name].values())), name)
        same = [loops for other, loops in groups if other.shape == share_K.shape and _close(other, share_K)]
        if same:
            same[0].append(name)
        else:
            groups.append((share_K, [name]))
    return [_target(results, names, share_K, loops) for share_K, loops in groups]


def _target(results: Results, names: Sequence[str], share_K: Values, loops: list[str]) -> Target:
    constant = _close(share_K, share_K[:1])
    others = [
        name for name in names if not is_loop(results, name) and (constant or name == results.control_of(loops[0]))
    ]
    return Target(
        label=_label(results, loops[0], share_K, constant=constant),
        constant=constant,
        loops=tuple(loops),
        settings=(*others, *loops),
        share_K=share_K,
    )


def _label(results: Results, setting: str, share_K: Values, *, constant: bool) -> str:
    if constant:
        return (
            "the starting entropy" if _close(share_K[:1], np.ones(1)) else f"{share_K[0]:.2f} of the starting entropy"
        )
    config = config_of(results, setting)
    places, levels = config["objective.clip.loop.at"], config["objective.clip.loop.entropy"]
    over = "of the run" if config["objective.clip.loop.over"] == "run" else "steps"
    points = ", ".join(f"{level:g} at {place:g}" for place, level in zip(places, levels, strict=True))
    return f"a line through {points} {over}"


def _close(one: Values, other: Values) -> bool:
    return bool(np.abs(one - other).max() < _SAME)


def _target_share(run: RunData, setting: str) -> Values:
    start = run.series("actor/old_entropy")[1][0]
    share_K = run.series("control/entropy_target")[1] / start
    if not len(share_K) or not np.isfinite(share_K).all():
        raise ValueError(
            f"{setting}: a closed loop without control/entropy_target at every step; store the table again"
        )
    return np.asarray(share_K)


def held(results: Results, setting: str, target: Target) -> dict[int, Held]:
    """By seed. A run that has other steps than the target is a ValueError."""
    found = {}
    for seed, run in results.runs[setting].items():
        steps, before = run.series("actor/entropy_over_start")
        if len(before) != len(target.share_K):
            raise ValueError(f"{setting}, seed {seed}: {len(before)} steps, but its target has {len(target.share_K)}")
        errors = relative_errors(before, target.share_K)
        found[seed] = hold_of(steps[:-1], errors, total_steps=len(before))
    return found


def read_loop(run: RunData) -> LoopUpdates:
    """From the updates. ValueError where they are not stored, or no loop's."""
    rows = run.read_updates()
    names = ("loop_knob", "loop_wanted", "loop_predicted", "loop_entropy")
    if not rows or any(row.get(f"control/{name}") is None for row in rows for name in names):
        raise ValueError(f"{run.name}: expected updates with control/loop_*; store the table again, with its updates")
    rows = sorted(rows, key=lambda row: (row["step"], row["update"]))
    knob, wanted, predicted, entropy, measured = (
        np.array([row.get(f"control/{name}") for row in rows], dtype=np.float64) for name in (*names, "loop_measured")
    )
    return LoopUpdates(
        step_U=np.array([int(row["step"]) for row in rows]),
        knob_U=knob,
        wanted_U=wanted,
        predicted_U=predicted,
        measured_U=measured,
        entropy_U=entropy,
    )


def reach(results: Results, setting: str) -> Reach:
    """Of all its runs. The band is the loop's own."""
    band = float(config_of(results, setting)["objective.clip.loop.band"])
    return reach_of([read_loop(run) for run in results.runs[setting].values()], band=band)


def momentum_of(results: Results, setting: str) -> float:
    """beta1 of the optimizer."""
    return float(config_of(results, setting)["policy.optimizer.beta1"])


def predictions(results: Results, setting: str) -> dict[int, Predicted]:
    """By seed."""
    beta = momentum_of(results, setting)
    found = {}
    for seed, run in results.runs[setting].items():
        loop = read_loop(run)
        found[seed] = Predicted(
            updates=fit_change(*changes_of_updates(loop, loop.predicted_U)),
            averaged=fit_change(*changes_of_updates(loop, averaged(loop.predicted_U, beta))),
            steps=fit_change(*changes_of_steps(loop)),
            estimate_bias=estimate_bias(loop),
        )
    return found
