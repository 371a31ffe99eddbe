"""docs/results/clipping.md: what clipping does to the entropy where the reward is random (arXiv 2509.26114)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megarl.report.figure import AnyFigure, LineFigure
from results.clipping_claims import CLAIMS, CLIPS, NONE, answer, claims_table, counts, judge, present
from results.clipping_first_step import (
    first_step_answer,
    first_step_figure,
    first_step_table,
    first_step_words,
    level_words,
    without_farthest_words,
)
from results.clipping_levels import (
    clips_of,
    coin_words,
    falling_words,
    first_words,
    levels_table,
    shares_first_step,
    wandering_words,
)
from results.clipping_matched import dropped_table, dropped_words, moved_table, moved_words
from results.clipping_prediction import STEP_SCALE, factor_words, prediction_table, prediction_words, removed_table
from results.ran import ran
from results.reading import Results
from results.words import field, listed

TABLES = ("random-reward-small",)
ONE_STEP = "random-reward-first-step-small"
SAME_TASK = ("random-reward-products-small",)
"""What `ONE_STEP` is a part of, with other seeds."""
OPTIONAL = (*SAME_TASK, ONE_STEP)
SHOWN = {
    "Clip-low and its controls": ("low0.2", "low0.1"),
    "Clip-high and its controls": ("high0.2", "high0.1"),
    "Both bounds and their control": ("symmetric",),
}
"""Figures: title -> clips."""


def compute(tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the template."""
    named = labels(tables)
    judged = [[judge(claim, found, where) for where, found in named.items()] for claim in CLAIMS]
    every = [one for claims in judged for one in claims]
    found = list(named.values())
    alone = tables.get(ONE_STEP)
    all_found = [*found, alone] if alone else found
    return {
        "ran": ran(all_found),
        "missing": [name for name in OPTIONAL if name not in tables],
        "answers": [answer(claims) for claims in judged],
        "first_step": _first_step(alone, tables) if alone else None,
        "first_words": first_words(named),
        "claims": claims_table(judged),
        "at_end": counts([one for each in every for one in each.at_end]),
        "after_first": counts([one for each in every for one in each.after_first]),
        "levels": [(where, levels_table(one)) for where, one in named.items()],
        "falling": falling_words(named),
        "wandering": wandering_words(named),
        "coins": coin_words(named),
        "dropped": [(where, dropped_table(one)) for where, one in named.items()],
        "dropped_words": dropped_words(named),
        "moved": [(where, moved_table(one)) for where, one in named.items()],
        "moved_words": moved_words(named),
        "removed": [(where, removed_table(one, clips_of(one))) for where, one in named.items()],
        "predictions": [(where, prediction_table(one, clips_of(one))) for where, one in named.items()],
        "prediction_words": [prediction_words(one, clips_of(one), where) for where, one in named.items()],
        "factor": factor_words(found),
        "facts": found[0].facts,
        "tasks": listed(list(dict.fromkeys(task_of(one) for one in all_found))),
        "steps": listed(
            [
                f"{listed(one.facts.steps)} steps on {where} at {field(one.facts.optimizer['lr'])}"
                for where, one in named.items()
            ]
        ),
        "seeds": listed([f"{_seeds(one)} on {where}" for where, one in named.items()]),
    }


def figures(tables: Mapping[str, Results]) -> dict[str, AnyFigure]:
    """Entropy over the steps, a figure per claim and ablation, and predicted against measured changes."""
    drawn: dict[str, AnyFigure] = {}
    if alone := tables.get(ONE_STEP):
        drawn["first-step"] = first_step_figure(alone, clips_of(alone))
    for name, found in _of_whole_runs(tables).items():
        key = "" if name == TABLES[0] else f"{name.removeprefix('random-reward-').removesuffix('-small')}-"
        where = next(label for label, one in labels(tables).items() if one is found)
        for title, clips in SHOWN.items():
            if shown := [clip for clip in clips if found.has(clip)]:
                settings = present(found, [NONE, *(part for clip in shown for part in (clip, f"{clip}-coin"))])
                drawn[f"{key}{clips[0].rstrip('.012')}"] = _entropy(found, f"{title}: {where}", settings)
        drawn[f"{key}predicted"] = found.figure("predicted_change", present(found, [NONE, *CLIPS]))
    return drawn


def labels(tables: Mapping[str, Results]) -> dict[str, Results]:
    """The ablations of whole runs by what a reader calls them: the task, with the rate where one task has several."""
    whole = _of_whole_runs(tables).values()
    tasks = [task_of(one) for one in whole]
    return {
        task if tasks.count(task) == 1 else f"{task} at rate {field(one.facts.optimizer['lr'])}": one
        for task, one in zip(tasks, whole, strict=True)
    }


def _of_whole_runs(tables: Mapping[str, Results]) -> dict[str, Results]:
    return {name: one for name, one in tables.items() if name != ONE_STEP}


def _first_step(found: Results, tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the section on one step."""
    judged = [judge(claim, found, task_of(found), scale=STEP_SCALE) for claim in CLAIMS]
    clips = clips_of(found)
    return {
        "name": found.facts.name,
        "answers": [first_step_answer(one) for one in judged],
        "seeds": _seeds(found),
        "table": first_step_table(judged, found),
        "counts": counts([one for each in judged for one in each.after_first]),
        "levels": levels_table(found, one_step=True),
        "dropped": dropped_table(found, 1),
        "moved": moved_table(found, 1),
        "moved_words": moved_words({task_of(found): found}, 1),
        "removed": removed_table(found, clips, one_step=True),
        "words": first_step_words(found, clips),
        "farthest": without_farthest_words(judged, found),
        "level_words": level_words(found, clips),
        "shares": shares_first_step(found),
        "new_seeds": not any(_seed_set(found) & _seed_set(tables[name]) for name in SAME_TASK if name in tables),
    }


def task_of(found: Results) -> str:
    return str(found.facts.config["data.train.task"])


def _seed_set(found: Results) -> set[int]:
    return {seed for one in found.facts.settings for seed in one.seeds}


def _seeds(found: Results) -> str:
    counts = sorted({len(one.seeds) for one in found.facts.settings})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def _entropy(found: Results, title: str, settings: Sequence[str]) -> AnyFigure:
    figure = found.figure("entropy_over_start", present(found, settings))
    assert isinstance(figure, LineFigure)
    return replace(figure, title=title, subtitle=f"{figure.subtitle}; the axis begins at the data", axis="data")
