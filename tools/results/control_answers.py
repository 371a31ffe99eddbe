"""Entropy and answers of settings beside their control: the table and the sentences that several parts have."""

from collections.abc import Callable, Sequence

from megarl.ablation.seeds import SeedMean
from results.control_words import evaluated_metrics, some
from results.ran import table
from results.reading import BySeed, Results, difference, over_seeds
from results.words import estimate, mean, signed


def answers_table(results: Results, settings: Sequence[str]) -> str:
    """H/H0 at the end and the last evaluation inside a run, each with its difference to the control; of answers with
    the interval over problems where it is stored."""
    metrics = evaluated_metrics(results)
    heads = ["setting", "H/H0 end", "less control's"]
    for metric in metrics:
        heads += [label(metric), "less control's"]
    reads: list[tuple[str, Callable[[str], BySeed]]] = [("", lambda name: results.measure(name, "entropy_end"))]
    reads += [(metric, lambda name, metric=metric: results.evaluated(name, metric)) for metric in metrics]
    rows = []
    for name in settings:
        control = results.control_of(name)
        row = [name]
        for metric, read in reads:
            beside = "control"
            if control is not None:
                found = difference(read(name), read(control)) if results.has(control) else None
                beside = estimate(found) + over_problems(results, name, metric)
            row += [mean(over_seeds(read(name))), beside]
        rows.append(row)
    return table(heads, rows)


def over_problems(results: Results, setting: str, metric: str) -> str:
    """The interval of the difference to the control, in brackets; "" where it is not stored."""
    ends = results.facts.over_problems.get(setting, {}).get(metric, {}).get("difference")
    return f" ({signed(ends['low'])} to {signed(ends['high'])})" if ends else ""


def told_apart(results: Results, settings: Sequence[str], metric: str) -> str:
    """Which settings an evaluation's measure tells apart from the control, and what it would not have shown."""
    found: dict[str, SeedMean] = {}
    for name in settings:
        control = results.control_of(name)
        if control is not None and results.has(control):
            one = difference(results.evaluated(name, metric), results.evaluated(control, metric))
            if one is not None:
                found[name] = one
    widths = [one.half_width for one in found.values() if one.half_width is not None]
    if not widths:
        return f"{label(metric)}: one seed, so no setting can be told apart from the control."
    above = [name for name, one in found.items() if one.excludes_zero and one.value > 0]
    below = [name for name, one in found.items() if one.excludes_zero and one.value < 0]
    parts = [f"{some(above, 'is', 'are')} above the control" if above else ""]
    parts.append(f"{some(below, 'is', 'are')} below the control" if below else "")
    told = " and ".join(part for part in parts if part) or "no setting is told apart from the control"
    largest = max(abs(one.value) + (one.half_width or 0.0) for one in found.values())
    return (
        f"{label(metric)}: {told}. Differences of more than {100 * largest:.1f} points are outside of every interval; "
        f"ones below {100 * min(widths):.1f} points would not have been seen in any."
    )


def label(metric: str) -> str:
    """mean@8 of eval/held_out/mean@8."""
    return metric.rpartition("/")[2]
