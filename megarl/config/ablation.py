"""One file of an ablation: a run's configuration, what is varied over it, and how the runs are driven."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, raise_problems

OWN_FIELDS = {
    "name": "the ablation names its runs after their settings; leave it out",
    "logging.directory": "runs lie in the ablation's directory; set `output` instead",
    "train.seed": "seeds are those of `seeds`; set them there",
}
"""Fields of a run that the ablation sets."""


class SettingConfig(Config):
    """One entry of a list of settings."""

    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """In the names of its runs; absent: made of its fragments and overrides."""
    about: str = ""
    """One line for the report."""
    control: str | None = None
    """The setting with which this one is compared; absent: the ablation's."""
    fragments: list[str] = []
    """Files laid over the base, relative to this file."""
    overrides: dict[str, Any] = {}
    """Fields of the run, as in its configuration: `train.steps = 30`, or a table."""


class AblationConfig(Config):
    """What `megarl ablate` reads."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Names the ablation's directory."""
    about: str = ""
    """What is asked, for the report."""
    base: str
    """The configuration that all runs share, relative to this file."""
    fragments: list[str] = []
    """Files laid over it, in order, relative to this file."""
    overrides: dict[str, Any] = {}
    """Fields of every run, over those: `train.steps = 30`, or a table."""
    grid: dict[str, Any] = {}
    """Field = [values]; every combination is a setting: `objective.clip.low = [0.1, 0.2]`."""
    settings: list[SettingConfig] = []
    """Settings by name; with a grid, each of them with every point of it."""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    """train.seed of the runs of each setting."""
    control: str | None = None
    """The setting with which the others are compared, unless they name one of their own."""
    warm_start: bool = False
    """Make a warm start by the base's [sft] once, with whose weights every run begins."""
    at_once: int = Field(1, ge=1)
    """Runs at a time on this machine, at most; fewer where it has no room for so many."""
    keep_engines: bool = True
    """Runs that follow each other and differ in nothing that Ray or an engine is made of ([model], [rollout],
    [cluster], [parallel], the chat template) have the same Ray and the same vLLM engines, which start once; the numbers
    are those of a run alone. After a run that fails, is stopped or loses an engine the next one starts its own. false:
    each run starts its own. Not with --slurm, where each run is a job's."""
    retries: int = Field(1, ge=0)
    """How often a run that has failed is tried again. One whose configuration is refused is not."""
    output: str = "runs"
    """The ablation's directory is made below this."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        return raise_problems(self, (_check_seeds, _check_grid, _check_own_fields, _check_names))

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Dotted field -> its values, in the order of the file."""
        return flatten(self.grid)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of all that is not a table, and of empty ones, as fields of a run are written on the command
    line. A quoted key "train.steps" is a path too."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{path}.")
        else:
            found[path] = value
    return found


def _check_seeds(config: AblationConfig) -> Iterator[str]:
    if any(seed < 0 for seed in config.seeds) or len(set(config.seeds)) != len(config.seeds):
        yield f"seeds: expected different integers >= 0, found {config.seeds}"


def _check_grid(config: AblationConfig) -> Iterator[str]:
    for field, values in config.axes.items():
        if not isinstance(values, list) or not values:
            yield f"grid.{field}: expected an array of its values, such as [0.1, 0.2], found {values!r}"
        elif any(values.count(value) > 1 for value in values):
            yield f"grid.{field}: expected different values, found {values}"


def _check_own_fields(config: AblationConfig) -> Iterator[str]:
    tables = {"overrides": config.overrides, "grid": config.grid}
    tables |= {f"settings.{at}.overrides": setting.overrides for at, setting in enumerate(config.settings)}
    for where, table in tables.items():
        for field in flatten(table):
            if field in OWN_FIELDS:
                yield f"{where}.{field}: {OWN_FIELDS[field]}"


def _check_names(config: AblationConfig) -> Iterator[str]:
    names = Counter(setting.name for setting in config.settings if setting.name)
    yield from (f'settings: {count} have the name "{name}"' for name, count in names.items() if count > 1)
