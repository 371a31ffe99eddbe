"""What methods-2026-small says: which way this year's methods move the entropy, beside what their own budget says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megarl.report.figure import Values
from megarl.report.run_data import RunData
from results.control_words import evaluated_metrics, percent
from results.ran import table
from results.reading import Results
from results.words import listed, plain, signed

_NONE = 0.005
PARTS = ("positive_kept", "positive_clipped", "negative_kept", "negative_clipped")


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One run: what its budget says, and what the entropy did."""

    setting: str
    seed: int
    change: float
    """Of the entropy from the first step's beginning to the last one's, nats."""
    start: float
    parts: tuple[float, ...]
    """Of the budget, mean over the steps, each as a share of all four without their signs: as `PARTS`."""
    budget: float
    """entropy/budget likewise: the share that the updates had."""
    largest: float
    """Of any step, likewise, without its sign."""
    one_way: bool
    """Whether the budget has one sign in all steps."""
    agreeing: int
    """Steps whose budget has the sign of the entropy's change to the next step."""
    steps: int
    """That have both."""

    @property
    def is_balanced(self) -> bool:
        """Whether the budget is 0 in every step, as far as the table shows it: a method can want that. It has no sign
        then."""
        return self.largest < _NONE

    @property
    def agrees(self) -> bool:
        """Whether budget and entropy have one sign."""
        return bool(np.sign(self.budget) == np.sign(self.change))


def read_moved(run: RunData, setting: str, seed: int) -> Moved:
    """ValueError where the run has no entropy, or no budget, of two steps."""
    entropy_K = run.series("actor/old_entropy")[1]
    budget_K = run.series("entropy/budget")[1]
    if len(entropy_K) < 2 or not np.isfinite(entropy_K).all() or not np.isfinite(budget_K).all():
        raise ValueError(f"{setting}, seed {seed}: expected an entropy and a budget of each of at least two steps")
    change_K = np.diff(entropy_K)
    means = [_mean(run.series(f"entropy/budget_{part}")[1]) for part in PARTS]
    size = sum(map(abs, means)) or 1.0
    return Moved(
        setting=setting,
        seed=seed,
        change=float(entropy_K[-1] - entropy_K[0]),
        start=float(entropy_K[0]),
        parts=tuple(one / size for one in means),
        budget=float(budget_K.mean()) / size,
        largest=float(np.abs(budget_K).max()) / size,
        one_way=bool((np.sign(budget_K) == np.sign(budget_K[0])).all()),
        agreeing=int((np.sign(budget_K[:-1]) == np.sign(change_K)).sum()),
        steps=len(change_K),
    )


def _mean(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def compute(results: Results) -> dict[str, object]:
    """Values of the template's part."""
    moved = [
        read_moved(run, one.name, seed)
        for one in results.facts.settings
        for seed, run in results.runs.get(one.name, {}).items()
    ]
    seeds = max(len(results.runs[one.name]) for one in results.facts.settings)
    return {
        "table": _table(results, moved),
        "signs": _signs(moved),
        "against": _against(results, moved),
        "order": _order(moved),
        "seeds": "One seed" if seeds == 1 else f"{seeds} seeds",
        "one_seed": seeds == 1,
    }


def _table(results: Results, moved: Sequence[Moved]) -> str:
    metrics = evaluated_metrics(results)
    heads = ["setting", "H change", "of H0", "budget", "A > 0 kept", "clipped", "A < 0 kept", "clipped", "signs"]
    heads += ["steps agree", *(metric.rpartition("/")[2] for metric in metrics)]
    rows = []
    for one in moved:
        name = one.setting if len(results.runs[one.setting]) == 1 else f"{one.setting}, seed {one.seed}"
        row = [name, signed(one.change), percent(one.change / one.start), signed(one.budget, 2)]
        row += [signed(part, 2) for part in one.parts]
        row.append("none" if one.is_balanced else "agree" if one.agrees else "differ")
        row.append("–" if one.is_balanced else f"{one.agreeing} of {one.steps}")
        row += [plain(results.evaluated(one.setting, metric).get(one.seed)) for metric in metrics]
        rows.append([cell.replace("-", "−") if cell.endswith("%") else cell for cell in row])
    return table(heads, rows)


def _signs(moved: Sequence[Moved]) -> str:
    told = [one for one in moved if not one.is_balanced]
    if not told:
        return "No run's budget has a sign."
    differ = [one.setting for one in told if not one.agrees]
    steps, agreeing = sum(one.steps for one in told), sum(one.agreeing for one in told)
    runs = f"{len(told) - len(differ)} of {len(told)}{f' (not in {listed(differ)})' if differ else ''}"
    balanced = [
        f"{one.setting}, whose entropy changes by {signed(one.change)} nats" for one in moved if one.is_balanced
    ]
    without = f" Not counted, as the budget is 0 to two digits: {'; '.join(balanced)} all the same." if balanced else ""
    if len({np.sign(one.budget) for one in told}) == 1 and all(one.one_way for one in told):
        sign, moves = ("negative", "falls") if told[0].budget < 0 else ("positive", "rises")
        return (
            f"The budget is {sign} in every step of all {len(told)}, so no more can be said of its sign than how often "
            f"the entropy {moves}: over the run in {runs}, and in {agreeing:,} of {steps:,} steps "
            f"({percent(agreeing / steps)}).{without}"
        )
    whole = f"Over the whole run the budget's mean has the sign of the entropy's change in {runs}."
    return f"{whole} Step by step it has in {agreeing:,} of {steps:,} ({percent(agreeing / steps)}).{without}"


def _against(results: Results, moved: Sequence[Moved]) -> str:
    """Which way each goes beside the control, of the runs that share its seed."""
    control = results.facts.control
    of_control = {one.seed: one for one in moved if one.setting == control}
    beside = [(one, of_control[one.seed]) for one in moved if one.setting != control and one.seed in of_control]
    if not beside:
        return "There is no control to set them beside."
    above = [one.setting for one, other in beside if one.change > other.change]
    below = [one.setting for one, other in beside if one.change <= other.change]
    start = next(iter(of_control.values()))
    text = f"{control} moves it by {signed(start.change)} nats from {plain(start.start)}. "
    text += f"More entropy than it at the end have {listed(above)}" if above else "None ends with more entropy"
    return text + (f"; less have {listed(below)}." if below else "; none has less.")


def _order(moved: Sequence[Moved]) -> str:
    """Whether the budget's share orders the methods as their entropy does."""
    budgets, changes = (np.array([getattr(one, name) for one in moved]) for name in ("budget", "change"))
    if len(moved) < 4 or len(set(np.round(budgets, 2).tolist())) < len(moved) / 2 or np.ptp(changes) == 0:
        return "Their shares are too few, or too much alike, to set them in an order."
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (budgets, changes)]
    found = float(np.corrcoef(*ranks)[0, 1])
    return (
        f"Between the {len(moved)} runs the rank correlation of the budget's share with the entropy's change is "
        f"{signed(found, 2)}; of as many runs without any connection it is beyond ±{_chance(len(moved)):.2f} in one "
        "case of twenty."
    )


def _chance(runs: int) -> float:
    """What a rank correlation of `runs` random orders exceeds in size in 5 %; the same on every call."""
    draws = np.random.default_rng(0).permuted(np.tile(np.arange(runs, dtype=np.float64), (20_000, 1)), axis=1)
    centred = np.arange(runs) - (runs - 1) / 2
    found = (draws - (runs - 1) / 2) @ centred / (centred**2).sum()
    return float(np.quantile(np.abs(found), 0.95))
