"""What true-reward-small says: entropy and answers to held-out problems under constant bounds."""

from collections.abc import Sequence

from megarl.report.run_data import RunData
from results.control_answers import answers_table, label, told_apart
from results.control_words import config_of, evaluated_metrics, some
from results.ran import table
from results.reading import Results, difference, over_seeds
from results.words import estimate, field, listed, mean, verdict

CLAIMS = (
    ("no-clip-high", "symmetric", +1, "without clip-high entropy stays higher"),
    ("balanced", "no-clip-high", +1, "a tighter clip-low alone keeps it higher still"),
    ("no-clip-low", "symmetric", -1, "without clip-low it falls further"),
)
"""arXiv 2509.26114, Figure 5, of H/H0 at the end: (setting, other, sign of the difference, in words)."""


def compute(results: Results) -> dict[str, object]:
    """Values of the template's part."""
    names = [one.name for one in results.facts.settings if results.has(one.name)]
    metrics = evaluated_metrics(results)
    return {
        "levels": _levels(results, names),
        "differences": answers_table(results, names),
        "claims": [*_claims(results), *(_kept(results, names, metric) for metric in metrics if "/pass@" in metric)],
        "answers": [told_apart(results, names, metric) for metric in metrics],
        "question": _question(results, names),
    }


def _levels(results: Results, names: Sequence[str]) -> str:
    """The bounds, what they drop, and the entropy over the whole run."""
    rows = []
    for name in names:
        config = config_of(results, name)
        row = [name, field(config.get("objective.clip.low")), field(config.get("objective.clip.high"))]
        row += [mean(over_seeds(results.measure(name, one)), 2, 100) for one in ("clip_low_mean", "clip_high_mean")]
        rows.append([*row, mean(over_seeds(results.measure(name, "entropy_mean")))])
    return table(["setting", "low", "high", "clip-low %", "clip-high %", "H/H0 mean"], rows)


def _claims(results: Results) -> list[str]:
    """What the paper finds of the entropy, and what is found here."""
    told = []
    for setting, other, sign, claim in CLAIMS:
        if not results.has(setting, other):
            told.append(f"{claim} ({setting} less {other}): not measured.")
            continue
        found = difference(results.measure(setting, "entropy_end"), results.measure(other, "entropy_end"))
        told.append(
            f"{claim}: **{verdict(found, sign)}**, {setting} less {other} {estimate(found)} of H/H0 at the end."
        )
    return told


def _kept(results: Results, names: Sequence[str], metric: str) -> str:
    """Figure 6: pass@n declines under both bounds. Every setting's change from before the first step to the end."""
    changes = {name: over_seeds(results.per_seed(name, lambda run: _change(run, metric))) for name in names}
    told = [f"{name} {estimate(one)}" for name, one in changes.items() if one is not None]
    control = results.facts.control
    if not told or control not in changes:
        return f"under both bounds {label(metric)} declines: not measured, there is one evaluation, or no control."
    return (
        f"under both bounds {label(metric)} declines: **{verdict(changes[control], -1)}**; from before the first step "
        f"to the end {listed(told)}."
    )


def _change(run: RunData, metric: str) -> float | None:
    values = run.series(metric)[1]
    return float(values[-1] - values[0]) if len(values) > 1 else None


def _question(results: Results, names: Sequence[str]) -> str:
    """Do bounds that keep entropy keep pass@n, at the same mean@n?"""
    control = results.facts.control
    metrics = evaluated_metrics(results)
    wide = [metric for metric in metrics if "/pass@" in metric]
    narrow = [metric for metric in metrics if "/mean@" in metric]
    if control is None or not wide or not narrow or not results.has(control):
        return "Whether bounds that keep entropy keep pass@n is not measured: an evaluation or the control is missing."
    keeping = [name for name in names if name != control and _sign(results, name, "entropy_end") > 0]
    if not keeping:
        return (
            f"No setting keeps more entropy than {control} by an interval that excludes 0, so whether that keeps "
            "pass@n cannot be asked of these runs."
        )
    better = [name for name in keeping if all(_sign(results, name, metric) > 0 for metric in wide)]
    worse = [name for name in keeping if any(_sign(results, name, metric) < 0 for metric in narrow)]
    paid = f"{some(worse, 'pays', 'pay')} for it in mean@n" if worse else "none of them is seen to pay for it in mean@n"
    gained = (
        f"{some(better, 'has', 'have')} a higher pass@n" if better else "none of them is seen to have a higher pass@n"
    )
    return f"{some(keeping, 'keeps', 'keep')} more entropy than {control}; {gained}, and {paid}."


def _sign(results: Results, setting: str, what: str) -> int:
    """Of the difference to the control; 0 where the interval has 0."""
    control = results.control_of(setting)
    assert control is not None
    read = results.evaluated if "/" in what else results.measure
    found = difference(read(setting, what), read(control, what))
    return 0 if found is None or not found.excludes_zero else (1 if found.value > 0 else -1)
