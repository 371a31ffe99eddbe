"""docs/results/theory-in-practice.md: where arXiv 2509.26114's conditions hold, and what the first order is worth."""

from collections.abc import Mapping
from typing import Any

from megarl.config.base import ConfigError
from megarl.report.figure import AnyFigure
from megarl.theory.practice.figures import build_practice_figures
from megarl.theory.practice.numbers import ACTING, ENDING, IDLE, Practice, read_practice
from megarl.theory.practice.tables import (
    GRAIN_TITLES,
    GRAINS,
    against_control_table,
    class_table,
    equal_table,
    growth_table,
    prediction_table,
    sign_table,
    token_table,
)
from results import practice_words as words
from results.ran import ran, width_words
from results.reading import Results
from results.words import estimate, mean

SIGNS, OPTIMIZERS, KL = "random-reward-small", "prediction-small", "kl-small"
TABLES = (SIGNS,)
OPTIONAL = (OPTIMIZERS, KL)
_OPTIMIZER = ("lr", "eps", "beta1")


def practice_of(found: Results) -> Practice:
    """What is stored beside the table. ValueError, saying how to make it, where it is not there."""
    path = found.path.with_name(found.facts.name + ENDING)
    try:
        return read_practice(path)
    except ConfigError as error:
        raise ValueError(
            f"{error}; expected it beside the table: python tools/store_results.py runs/{found.facts.name}-ablation-*"
        ) from error


def compute(tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the template; what is not stored is None."""
    practices = {name: practice_of(found) for name, found in tables.items()}
    signs = practices[SIGNS]
    return {
        "ran": ran(list(tables.values())),
        "width": width_words(list(tables.values())),
        "facts": tables[SIGNS].facts,
        "names": {"signs": SIGNS, "optimizers": OPTIMIZERS, "kl": KL},
        "acting": ACTING,
        "idle": IDLE,
        "sign_words": words.sign_words(signs),
        "coin_words": words.coin_words(signs),
        "token_words": words.token_words(signs),
        "signs": words.markdown(sign_table(signs)),
        "tokens": words.markdown(token_table(signs)),
        "classes": words.markdown(class_table(signs)),
        "files": {name: _read(one) for name, one in practices.items()},
        "adam": _agreement(signs),
        "optimizers": _optimizers(practices.get(OPTIMIZERS)),
        "kl": _kl(practices.get(KL), tables),
    }


def _read(practice: Practice) -> dict[str, Any]:
    """How much was read."""
    total = {name: practice.total(practice.settings, "run", "", name) for name in ("files", "traced_tokens", "steps")}
    return {name: f"{value:,.0f}" for name, value in total.items()} | {"runs": len(practice.runs)}


def _agreement(practice: Practice) -> list[str]:
    """A line for each grain, over all settings of a seed."""
    titles = {
        "one update": "around one update",
        "since the step began": "since the step began",
        "one step": "of a whole step, on the next step's responses",
        "own state": "of the state itself, a prompt's first token, by the next step",
    }
    lines = []
    for grain, title in titles.items():
        correlation = words.over_settings(practice, grain, "plain", "correlation")
        if correlation is None:
            continue
        sign, error = (words.over_settings(practice, grain, "plain", name) for name in ("sign", "error"))
        text = (
            f"Entropy change {title}: correlation {estimate(correlation, 2)}, signs that agree {mean(sign, 1, 100)} %, "
            f"error after the slope {mean(error, 2)}"
        )
        if (gain := words.momentum_gain(practice, grain)) is not None:
            text += f"; the optimizer's momentum in the prediction moves the correlation by {estimate(gain, 2)}"
        lines.append(f"{text}.")
    return lines


def _optimizers(practice: Practice | None) -> dict[str, Any] | None:
    if practice is None:
        return None
    told = {
        f"{GRAIN_TITLES.get(grain, grain)}, {which}": words.prediction_words(practice, grain, which)
        for grain in GRAINS
        for which in ("plain", "momentum")
    }
    return {
        "table": words.markdown(prediction_table(practice)),
        "growth": words.markdown(growth_table(practice)),
        "words": [f"{grain}: the prediction {text}." for grain, text in told.items() if text],
    }


def _kl(practice: Practice | None, tables: Mapping[str, Results]) -> dict[str, Any] | None:
    if practice is None:
        return None
    control = tables[KL].facts.control
    return {
        "levels": words.level_words(practice),
        "words": words.kl_words(practice, control) if control else [],
        "table": words.markdown(equal_table(practice)),
        "against": words.markdown(against_control_table(practice)),
    }


def figures(tables: Mapping[str, Results]) -> dict[str, AnyFigure]:
    """Those of `megarl theory` that the text shows."""
    wanted = {
        SIGNS: ("negative_by_surprisal", "negative_by_quintile", "prediction_correlation"),
        OPTIMIZERS: ("within_a_step", "prediction_correlation", "prediction_sign"),
        KL: (),
    }
    short = {SIGNS: "signs", OPTIMIZERS: "optimizers", KL: "kl"}
    found: dict[str, AnyFigure] = {}
    for name, results in tables.items():
        for figure in build_practice_figures(practice_of(results)):
            if figure.key in wanted[name] or (name == KL and figure.key.startswith("entropy_")):
                found[f"{short[name]}-{figure.key}"] = figure
    return found
