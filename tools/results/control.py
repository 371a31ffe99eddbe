"""docs/results/control.md: entropy under constant bounds, schedules, this year's methods and closed loops."""

from collections.abc import Callable, Mapping
from typing import Any

from megarl.ablation.seeds import SeedMean
from megarl.report.figure import AnyFigure
from results import control_bounds, control_loop_words, control_methods, control_schedules_words
from results.control_answers import label, over_problems
from results.control_loop import is_loop
from results.control_words import evaluated_metrics
from results.ran import ran, width_words
from results.reading import Results
from results.words import field, listed, mean

BOUNDS, SCHEDULES, METHODS = "true-reward-small", "flexec-small", "methods-2026-small"
TRUE, RANDOM = "control-small", "control-random-small"
TABLES = (TRUE,)
OPTIONAL = (BOUNDS, SCHEDULES, METHODS, RANDOM)
_ORDER = (BOUNDS, SCHEDULES, METHODS, TRUE, RANDOM)
_MOST_CLOUDS = 5
_TARGET = "entropy_target"
_LOOPS = {
    TRUE: (
        "loop",
        "under the true reward",
        "control-small: closed loops beside constant bounds, FlexEC's oscillating schedule (od) and adaptive bonuses, "
        "on a task whose reward lowers the entropy by itself.",
    ),
    RANDOM: (
        "random",
        "under a random reward",
        "control-random-small: the same loops where the reward is a coin and a step has more updates, beside constant "
        "bounds, FlexEC's oscillating schedule (od) and adaptive bonuses.",
    ),
}
"""Key of its figures, heading, and what it is."""


def compute(tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the template."""
    found = [tables[name] for name in _ORDER if name in tables]
    bounds = _bounds(tables[BOUNDS]) if BOUNDS in tables else None
    schedules = control_schedules_words.compute(tables[SCHEDULES]) if SCHEDULES in tables else None
    methods = control_methods.compute(tables[METHODS]) if METHODS in tables else None
    loops = [_loop(name, tables[name]) for name in (TRUE, RANDOM) if name in tables]
    return {
        "ran": ran(found),
        "missing": [name for name in _ORDER if name not in tables],
        "bounds": bounds,
        "schedules": schedules,
        "methods": methods,
        "loops": loops,
        "both": _both(tables) if RANDOM in tables else "",
        "short": _short(bounds, schedules, methods, loops),
        "limits": _limits(found),
        "pictures": _pictures_of(figure_titles(tables)),
    }


def figures(tables: Mapping[str, Results]) -> dict[str, AnyFigure]:
    """By file name without its ending. Points of many settings go into several figures: they have colours alone. A
    target is drawn with its loops and the control: what else is held against it is in the tables."""
    drawn: dict[str, AnyFigure] = {}
    for name, key in figure_keys(tables):
        settings = [one.name for one in tables[name].facts.settings if tables[name].has(one.name)]
        file = f"{_prefix(name)}-{key.replace('_', '-')}"
        if key == _TARGET:
            control = tables[name].facts.control
            settings = [one for one in settings if one == control or is_loop(tables[name], one)]
        if key != "predicted_change":
            drawn[file] = tables[name].figure(key, settings)
            continue
        for number, start in enumerate(range(0, len(settings), _MOST_CLOUDS), start=1):
            drawn[f"{file}-{number}"] = tables[name].figure(key, settings[start : start + _MOST_CLOUDS])
    return drawn


def figure_keys(tables: Mapping[str, Results]) -> list[tuple[str, str]]:
    """(table, key of its figure in `megarl report`)."""
    wanted: dict[str, list[str]] = {
        BOUNDS: ["entropy_over_start"],
        SCHEDULES: ["entropy_over_start"],
        METHODS: ["entropy_over_start", "predicted_change"],
        TRUE: [_TARGET],
        RANDOM: [_TARGET],
    }
    for name in (BOUNDS, TRUE):
        if name in tables:
            wanted[name] += [_figure_of(metric) for metric in evaluated_metrics(tables[name])]
    return [(name, key) for name in _ORDER if name in tables for key in wanted[name]]


def figure_titles(tables: Mapping[str, Results]) -> dict[str, str]:
    """File name without its ending -> the figure's title."""
    return {name: figure.title for name, figure in figures(tables).items()}


def _figure_of(metric: str) -> str:
    _, benchmark, measure = metric.split("/")
    return f"{benchmark}_{measure.partition('@')[0]}"


def _prefix(name: str) -> str:
    return {BOUNDS: "bounds", SCHEDULES: "schedules", METHODS: "methods"}.get(name) or _LOOPS[name][0]


def _pictures_of(titles: Mapping[str, str]) -> Callable[[str, str], str]:
    def pictures(prefix: str, about: str) -> str:
        names = [name for name in titles if name.startswith(f"{prefix}-")]
        return "".join(f"\n![{about}: {titles[name]}](figures/control-{name}.svg)\n" for name in names)

    return pictures


def _bounds(results: Results) -> dict[str, Any]:
    found = evaluated_metrics(results)
    return control_bounds.compute(results) | {
        "samples": listed([label(metric) for metric in found]),
        "has_problems": any(over_problems(results, setting, metric) for setting in results.runs for metric in found),
    }


def _loop(name: str, results: Results) -> dict[str, Any]:
    key, title, about = _LOOPS[name]
    return control_loop_words.compute(results) | {"key": key, "title": title, "about": about}


def _short(
    bounds: Mapping[str, Any] | None,
    schedules: Mapping[str, Any] | None,
    methods: Mapping[str, Any] | None,
    loops: list[dict[str, Any]],
) -> list[str]:
    """The parts' answers, in their own words."""
    found = []
    if bounds:
        found.append(f"**Constant bounds.** {bounds['question']}")
    if schedules:
        found.append(f"**Schedules.** {schedules['answers']} {schedules['beside_answers']}".rstrip())
    if methods:
        found.append(f"**Methods of 2026.** {methods['seeds']} each. {methods['signs']}")
    for one in loops:
        for target in one["targets"]:
            found.append(f"**Closed loops, {one['title']}**, held against {target['label']}: {target['said']}")
    return found


def _both(tables: Mapping[str, Results]) -> str:
    """The loops that both tables have: their errors side by side."""
    true, random = (control_loop_words.rms_of(tables[name]) for name in (TRUE, RANDOM))
    shared = [name for name in true if name in random]
    if not shared:
        return ""
    told = [f"{name} {mean(true[name], 1, 100)} and {mean(random[name], 1, 100)}" for name in shared]
    nearer = [name for name in shared if _apart(true[name], random[name]) > 0]
    further = [name for name in shared if _apart(true[name], random[name]) < 0]
    parts = [f"under the random reward {listed(nearer)} {_is(nearer)} nearer to the target" if nearer else ""]
    parts.append(f"under the true reward {listed(further)} {_is(further)} nearer" if further else "")
    verdict = " and ".join(part for part in parts if part) or "the intervals over seeds overlap for all of them"
    return f"RMS errors in % under the true reward and under the random one: {'; '.join(told)}. So {verdict}."


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _apart(one: SeedMean, other: SeedMean) -> int:
    """1: `one` is above by intervals that do not meet, -1: below, 0: they meet or are not there."""
    if one.half_width is None or other.half_width is None:
        return 0
    gap = one.value - other.value
    return 0 if abs(gap) <= one.half_width + other.half_width else (1 if gap > 0 else -1)


def _limits(found: list[Results]) -> list[str]:
    first = found[0].facts
    models = listed(sorted({f"{one.facts.model['parameters']:,}" for one in found}))
    tasks = listed(sorted({str(one.facts.config.get("data.train.task")) for one in found}))
    steps = listed(sorted({step for one in found for step in one.facts.steps}))
    longest = field(first.config.get("rollout.max_response_tokens"))
    return [
        f"The model has {models} weights, its answers at most {longest} tokens, of {tasks}. It is no evidence about "
        "models that write, nor about the papers' accuracies.",
        f"Runs have {steps} steps; the papers have hundreds. A schedule is squeezed into them, so each phase has few "
        "steps for the entropy to follow.",
        width_words(found),
        "The rules of this page were written before its runs were there. Rate and sizes are the quickstart's; another "
        "rate, task or range of bounds may turn an answer.",
    ]
