"""From a run's files to its numbers.

Measured is the entropy at an update less the entropy before the step on the SAME tokens: `actor/entropy` of the
update's mini-batch against the mean of `old_entropy` over the rollouts' rows of that mini-batch. So prompts and
lengths, which differ from one mini-batch to the next, cancel; before a step's first update it is 0.

What one update changed is measured from the mini-batch before its own to the one after it. Its own is left out: by
chance its tokens may have become more uncertain than others, which makes its term negative and its budget what it is,
and against the next mini-batch, which has no such chance, the entropy would seem to fall after it.

Predicted are the budgets of the updates before it. They are the first order of the states that those updates visited,
each with logits of its own: that other states follow them is what is measured, and the slope says how far.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megarl.report.figure import Values, finite
from megarl.report.run_data import RunData, iterate_updates
from megarl.theory.practice.numbers import UNKNOWN_SEED, RunNumbers
from megarl.theory.practice.own_states import OwnStates
from megarl.theory.practice.statistics import agree, difference_within, doubling_group
from megarl.theory.practice.tokens import CLASSES, SUMS, StepTokens, read_step_tokens
from megarl.theory.practice.updates import SIDES, StepUpdates, collect_updates

MOST_FILES = 400
"""Rollouts that are read of a run; of more some are, evenly from the first to the last."""
PREDICTIONS = ("plain", "momentum")
ENTROPY_AFTER = "entropy_after"
"""In "series": the entropy after a step's updates, on the next step's responses where there is one, else on its last
mini-batch's."""
_SERIES = (
    *("actor/old_entropy", "reward/mean", "actor/kl_loss", "actor/ppo_kl", "actor/ratio_max"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "response_length/mean"),
)


@dataclass(frozen=True, kw_only=True)
class StepChange:
    """A step with both."""

    step: int
    updates: StepUpdates
    measured: Values
    """[K]: of update k what the k updates before it have changed."""

    @property
    def around(self) -> Values:
        """[K - 1]: of update k from mini-batch k - 1 to k + 1; before the first, and at it, nothing has changed."""
        return self.measured[1:] - np.concatenate([self.measured[:1], self.measured[:-2]])


def read_numbers(run: RunData, *, setting: str, cell: str) -> tuple[RunNumbers, list[str]]:
    """(the run's numbers, what could not be read or was left out)."""
    numbers = RunNumbers(setting=setting, cell=cell, seed=UNKNOWN_SEED if run.seed is None else run.seed)
    problems = list(run.problems)
    updates = collect_updates(iterate_updates(run.run, problems), run.config)
    size = run.config.get("train", {}).get("mini_batch_responses")
    paths = sorted(run.run.rollouts.glob("step-*.parquet"))
    chosen = _evenly(paths, MOST_FILES) if size else []
    if not run.run.updates_path.is_file():
        problems.append("has no updates.jsonl")
    if not paths:
        problems.append("has no rollouts/, so no entropy on the same tokens")
    if len(chosen) < len(paths):
        problems.append(f"{len(chosen)} of {len(paths)} rollouts were read, evenly from the first to the last")
    changes: list[StepChange] = []
    sums: dict[tuple[str, str, int], Values] = {}
    traced = 0
    states = OwnStates(updates)
    for step, tokens in _read_files(chosen, size, problems):
        traced += tokens.num_traced
        states.add(step, tokens)
        for key, value in tokens.sums.items():
            sums[key] = sums[key] + value if key in sums else value
        if step in updates:
            measured = updates[step].values["actor/entropy"] - tokens.mean_old_entropy(updates[step].count)
            changes.append(StepChange(step=step, updates=updates[step], measured=measured))
    if chosen and not traced:
        problems.append("no response was traced (logging.traced_responses), so nothing is said of tokens")
    _put_run(numbers, run, changes, len(chosen), traced)
    _put_signs(numbers, updates, changes)
    _put_step_signs(numbers, run)
    _put_predictions(numbers, updates, changes, run)
    if (found := states.agree()) is not None:
        numbers.put("prediction", "own state|all|plain", found.named())
    _put_tokens(numbers, sums)
    _put_series(numbers, run, changes)
    return numbers, problems


def _read_files(paths: Sequence[Path], size: int, problems: list[str]) -> Iterator[tuple[int, StepTokens]]:
    for path in paths:
        try:
            yield int(path.stem.removeprefix("step-")), read_step_tokens(path, mini_batch_responses=size)
        except (OSError, ValueError) as error:
            problems.append(f"rollouts/{path.name} cannot be read: {str(error).splitlines()[0]}")


def _evenly(paths: Sequence[Path], at_most: int) -> list[Path]:
    if len(paths) <= at_most:
        return list(paths)
    return [paths[round(index)] for index in np.linspace(0, len(paths) - 1, at_most)]


def _put_run(numbers: RunNumbers, run: RunData, changes: Sequence[StepChange], files: int, traced: int) -> None:
    optimizer: Mapping[str, Any] = run.config.get("policy", {}).get("optimizer", {})
    _, seconds = run.series("timing_s/step")
    facts = {
        "steps": float(run.step),
        "steps_with_both": float(len(changes)),
        "updates_per_step": float(max((one.updates.count for one in changes), default=0)),
        "files": float(files),
        "traced_tokens": float(traced),
        "hours": float(np.nansum(seconds)) / 3600,
        **{name: float(optimizer[name]) for name in ("lr", "eps", "beta1", "beta2") if name in optimizer},
    }
    numbers.put("run", "", facts)


def _put_signs(numbers: RunNumbers, updates: Mapping[int, StepUpdates], changes: Sequence[StepChange]) -> None:
    """How often clipping's term is negative, and what the entropy does in such an update against the others."""
    for side in SIDES:
        differences, contributions, removed = (
            np.concatenate([np.empty(0), *(one.values[name] for one in updates.values())])
            for name in (
                f"entropy/clip_{side}_difference",
                f"entropy/clip_{side}_contribution",
                f"entropy/budget_removed_{side}",
            )
        )
        known = np.isfinite(differences)
        if not known.any():
            continue
        # What was removed has the other sign on the low side: there A < 0, so a token's push is against Q.
        towards = np.sign(removed) * (-1 if side == "low" else 1)
        acted = known & np.isfinite(removed) & (removed != 0)
        numbers.put(
            "sign",
            side,
            {
                "updates": float(known.sum()),
                "negative": float((differences[known] < 0).mean()),
                "contribution": _mean(contributions),
                "difference": float(np.median(differences[known])),
                "acted": float(acted.sum()),
                "against": float((towards[acted] < 0).mean()) if acted.any() else np.nan,
                "agree": float((towards[acted] == np.sign(differences[acted])).mean()) if acted.any() else np.nan,
                **_changes_after(side, changes),
            },
        )


def _changes_after(side: str, changes: Sequence[StepChange]) -> dict[str, float]:
    """Of updates with an update after them in the step, whose mini-batch says what they changed."""
    name = f"entropy/clip_{side}_difference"
    change = np.concatenate([np.empty(0), *(one.around for one in changes)])
    difference = np.concatenate([np.empty(0), *(one.updates.values[name][:-1] for one in changes)])
    ordinal = np.concatenate([np.empty(0), *(np.arange(one.updates.count - 1) for one in changes)])
    both = np.isfinite(change) & np.isfinite(difference)
    change, negative, ordinal = change[both], (difference[both] < 0).astype(np.float64), ordinal[both]
    means = {
        name: float(change[negative == value].mean()) if (negative == value).any() else np.nan
        for name, value in (("change_negative", 1.0), ("change_other", 0.0))
    }
    return {**means, "change_difference": difference_within(change, negative, ordinal)}


def _put_step_signs(numbers: RunNumbers, run: RunData) -> None:
    """Of whole steps: their term is one ratio over all updates; the change is from the step before to the one after,
    as the step's own responses decide its sign."""
    steps, entropy = run.series("actor/old_entropy")
    at = dict(zip(steps.tolist(), entropy.tolist(), strict=True))
    for side in SIDES:
        of_steps, difference = run.series(f"entropy/clip_{side}_difference")
        known = np.isfinite(difference)
        change = np.array([at.get(step + 1, np.nan) - at.get(step - 1, np.nan) for step in of_steps.tolist()])
        both, negative = known & np.isfinite(change), (difference < 0).astype(np.float64)
        if known.any():
            found = {
                "steps": float(known.sum()),
                "steps_negative": float(negative[known].mean()),
                "step_difference": difference_within(change[both], negative[both], np.zeros(int(both.sum()))),
            }
            numbers.put("sign", side, found)


def _put_predictions(
    numbers: RunNumbers, updates: Mapping[int, StepUpdates], changes: Sequence[StepChange], run: RunData
) -> None:
    for name in PREDICTIONS:
        within: dict[str, list[tuple[float, float, float, float]]] = {}
        for one in changes:
            each = getattr(one.updates, name)
            columns = (np.cumsum(each)[:-1], one.measured[1:], each[:-1], one.around)
            for ordinal, row in enumerate(zip(*columns, strict=True), start=1):
                for group in (doubling_group(ordinal), "all"):
                    within.setdefault(group, []).append(row)
        for group, rows in within.items():
            values = np.array(rows, dtype=np.float64)
            for grain, (p, m) in (("since the step began", (0, 1)), ("one update", (2, 3))):
                if (found := agree(values[:, p], values[:, m])) is not None:
                    numbers.put("prediction", f"{grain}|{group}|{name}", found.named())
        if (found := _agree_by_step(run, updates, name)) is not None:
            numbers.put("prediction", f"one step|all|{name}", found.named())
    _put_curves(numbers, changes)


def _agree_by_step(run: RunData, updates: Mapping[int, StepUpdates], name: str) -> Any:
    """A step's whole prediction against what the next step's responses say, which are others."""
    steps, entropy = run.series("actor/old_entropy")
    later = dict(zip(steps.tolist(), entropy.tolist(), strict=True))
    pairs = [
        (float(np.sum(getattr(of_step, name))), later[step + 1] - later[step])
        for step, of_step in updates.items()
        if step in later and step + 1 in later
    ]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return agree(both[:, 0], both[:, 1])


def _put_curves(numbers: RunNumbers, changes: Sequence[StepChange]) -> None:
    """Means over steps, after k updates: the entropy's way within a step."""
    most = max((one.updates.count for one in changes), default=0)
    for k in range(most):
        longer = [one for one in changes if one.updates.count > k]
        curve = {"measured": _mean(np.array([one.measured[k] for one in longer]))}
        curve |= {
            name: float(np.mean([getattr(one.updates, name)[:k].sum() for one in longer])) for name in PREDICTIONS
        }
        numbers.put("curve", str(k), curve)


def _put_tokens(numbers: RunNumbers, sums: Mapping[tuple[str, str, int], Values]) -> None:
    order = {kind: index for index, kind in enumerate(CLASSES)}
    has_set = {side for (side, kind, _), values in sums.items() if kind == "all" and values[SUMS.index("inside")] > 0}
    for (side, kind, index), values in sorted(
        sums.items(), key=lambda item: (item[0][0], order[item[0][1]], item[0][2])
    ):
        if side in has_set:
            numbers.put("tokens", f"{side}|{kind}|{index}", dict(zip(SUMS, values.tolist(), strict=True)))


def _put_series(numbers: RunNumbers, run: RunData, changes: Sequence[StepChange]) -> None:
    evaluated = [name for name in run.columns if name.startswith("eval/") and _is_answers(name)]
    for name in (*_SERIES, *evaluated):
        steps, values = run.series(name)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            numbers.put("series", str(int(step)), {name: value})
    steps, entropy = run.series("actor/old_entropy")
    before = dict(zip(steps.astype(int).tolist(), entropy.tolist(), strict=True))
    after = {step - 1: value for step, value in before.items()}
    for one in changes:
        if one.step not in after and one.step in before and np.isfinite(one.measured[-1]):
            after[one.step] = before[one.step] + float(one.measured[-1])
    for step, value in after.items():
        numbers.put("series", str(step), {ENTROPY_AFTER: value})


def _is_answers(name: str) -> bool:
    measure = name.rpartition("/")[2]
    return measure.startswith(("mean@", "pass@")) and measure != "pass@1"


def _mean(values: Values) -> float:
    """Of those that there are; NaN without any."""
    known = finite(values)
    return float(known.mean()) if len(known) else np.nan
