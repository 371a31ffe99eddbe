"""What a run or many runs say, as a long table: the file practice.parquet.

| column | what |
|---|---|
| setting, seed, cell | which run; seed -1: unknown |
| part | "run", "sign", "prediction", "curve", "tokens" or "series" |
| key | which number of that part, "low|surprisal|2" |
| name | what it is |
| value | the number; what is undefined has no row |

The file's metadata have the plan's name, every setting's control and what was left out or sampled.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megarl.ablation.seeds import SeedMean, mean_over_seeds, paired_difference
from megarl.config.base import ConfigError
from megarl.telemetry.atomic_file import replace_atomically

ENDING = ".practice.parquet"
Part = str
_TEXT = pa.dictionary(pa.int16(), pa.string())
SCHEMA = pa.schema(
    [
        *(pa.field(name, _TEXT, nullable=False) for name in ("setting", "cell")),
        pa.field("seed", pa.int64(), nullable=False),
        *(pa.field(name, _TEXT, nullable=False) for name in ("part", "key", "name")),
        pa.field("value", pa.float32(), nullable=False),
    ]
)
_METADATA = b"megarl.practice"
UNKNOWN_SEED = -1
ALL = "all settings"
ACTING, IDLE = "all that clip", "all that do not"
"""Of the settings with a set: those whose bounds took something away, and those whose never did (a coin's runs)."""


@dataclass(kw_only=True)
class RunNumbers:
    """Of one run."""

    setting: str
    cell: str
    seed: int
    values: dict[tuple[Part, str, str], float] = field(default_factory=dict)
    """(part, key, name) -> number; finite."""

    def put(self, part: Part, key: str, named: Mapping[str, float]) -> None:
        """Keep those that are finite, as float32: what is read again from a file is the same."""
        for name, value in named.items():
            if math.isfinite(value):
                self.values[part, key, name] = float(np.float32(value))

    def get(self, part: Part, key: str, name: str) -> float:
        """NaN where the run has none."""
        return self.values.get((part, key, name), math.nan)


@dataclass(frozen=True, kw_only=True)
class Practice:
    """Runs of one or several settings."""

    name: str
    runs: tuple[RunNumbers, ...]
    controls: Mapping[str, str] = field(default_factory=dict)
    """Setting -> the one it is compared with."""
    notes: tuple[str, ...] = ()
    """What was left out, and what was sampled."""

    @property
    def settings(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def groups(self) -> list[str]:
        """Names of several settings together: `ALL`, and where there are both, `ACTING` and `IDLE`."""
        if len(self.settings) < 2:
            return []
        return [ALL, *((ACTING, IDLE) if self._acting and self._idle else ())]

    def members(self, name: str) -> frozenset[str]:
        """The settings of a group; of a setting itself."""
        named = {ALL: frozenset(self.settings), ACTING: self._acting, IDLE: self._idle}
        return named.get(name, frozenset([name]))

    @cached_property
    def _acting(self) -> frozenset[str]:
        return frozenset(
            run.setting
            for run in self.runs
            for (part, _, name), value in run.values.items()
            if (part, name) == ("sign", "acted") and value > 0
        )

    @cached_property
    def _idle(self) -> frozenset[str]:
        has_set = {run.setting for run in self.runs if any(part == "sign" for part, _, _ in run.values)}
        return frozenset(has_set) - self._acting

    def keys(self, part: Part) -> list[str]:
        """Of any run, in the order in which they were put."""
        return list(dict.fromkeys(key for run in self.runs for of, key, _ in run.values if of == part))

    def by_seed(self, setting: str, part: Part, key: str, name: str) -> dict[int, float]:
        """The runs that have the number. `ALL`, `ACTING`, `IDLE`: of each seed the mean over those settings."""
        members = self.members(setting)
        found: dict[int, list[float]] = {}
        for run in self.runs:
            value = run.get(part, key, name)
            if run.setting in members and math.isfinite(value):
                found.setdefault(run.seed, []).append(value)
        return {seed: math.fsum(values) / len(values) for seed, values in found.items()}

    def estimate(self, setting: str, part: Part, key: str, name: str) -> SeedMean | None:
        """Over seeds; None where no run has the number."""
        found = self.by_seed(setting, part, key, name)
        return mean_over_seeds([*found.values()]) if found else None

    def difference(self, setting: str, other: str, part: Part, key: str, name: str) -> SeedMean | None:
        """Paired by seed; None where they share none."""
        return paired_difference(*(self.by_seed(one, part, key, name) for one in (setting, other)))

    def total(self, settings: Iterable[str], part: Part, key: str, name: str) -> float:
        """Over all runs of these settings."""
        wanted = set(settings)
        values = [run.get(part, key, name) for run in self.runs if run.setting in wanted]
        return math.fsum(value for value in values if math.isfinite(value))


def write_practice(practice: Practice, path: Path) -> None:
    """Replace the file, whole."""
    rows = [(run, key, value) for run in practice.runs for key, value in run.values.items()]
    columns: list[Sequence[object]] = [
        [run.setting for run, _, _ in rows],
        [run.cell for run, _, _ in rows],
        [run.seed for run, _, _ in rows],
        *([key[index] for _, key, _ in rows] for index in range(3)),
        [value for _, _, value in rows],
    ]
    facts = {"name": practice.name, "controls": dict(practice.controls), "notes": list(practice.notes)}
    arrays = [
        pa.array(column, pa.string()).dictionary_encode().cast(one.type)
        if one.type == _TEXT
        else pa.array(column, one.type)
        for column, one in zip(columns, SCHEMA, strict=True)
    ]
    table = pa.table(arrays, schema=SCHEMA.with_metadata({_METADATA: json.dumps(facts).encode()}))
    with replace_atomically(path) as partial:
        pq.write_table(
            table, partial, compression="zstd", use_byte_stream_split=["value"], use_dictionary=_DICTIONARIES
        )


_DICTIONARIES = [one.name for one in SCHEMA if one.name != "value"]


def read_practice(path: Path) -> Practice:
    """The reverse. ConfigError where the file is none."""
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own are of these
        raise ConfigError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    facts = (table.schema.metadata or {}).get(_METADATA)
    if facts is None or table.schema.names != SCHEMA.names:
        raise ConfigError(
            f"{path}: expected a table that `megarl theory RUN|ABLATION` wrote, found the columns "
            f"{', '.join(table.schema.names[:8])}"
        )
    told = json.loads(facts)
    runs: dict[str, RunNumbers] = {}
    for setting, cell, seed, part, key, name, value in zip(
        *(table[one].to_pylist() for one in SCHEMA.names), strict=True
    ):
        run = runs.setdefault(cell, RunNumbers(setting=setting, cell=cell, seed=seed))
        run.values[part, key, name] = value
    return Practice(name=told["name"], runs=tuple(runs.values()), controls=told["controls"], notes=tuple(told["notes"]))
