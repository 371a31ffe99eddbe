"""What the parts of control.md share."""

from collections.abc import Mapping, Sequence
from typing import Any

from megarl.report.run_data import EVALUATION
from results.reading import Results
from results.words import listed


def config_of(results: Results, setting: str) -> Mapping[str, Any]:
    """Dotted path -> value of its runs' configuration."""
    return {**results.facts.config, **results.stored.setting(setting).config}


def evaluated_metrics(results: Results) -> list[str]:
    """mean@n and pass@n of every benchmark, n the number of samples."""
    names = dict.fromkeys(
        name for runs in results.runs.values() for run in runs.values() for name in sorted(run.columns)
    )
    found = [name for name in names if name.startswith(EVALUATION)]
    means = [name for name in found if name.rpartition("/")[2].startswith("mean@")]
    pairs = [(name, name.replace("/mean@", "/pass@")) for name in means]
    return [name for pair in pairs for name in pair if name in found]


def some(names: Sequence[str], verb: str, verbs: str) -> str:
    """ "a has", "a and b have"."""
    return f"{listed(names)} {verb if len(names) == 1 else verbs}"


def percent(share: float, digits: int = 0) -> str:
    """ "12 %"."""
    return f"{100 * share:.{digits}f} %"
