"""Stored tables with numbers that are known, of the settings of a file in configs/ablations."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from megarl.ablation.stored import Facts, StoredAblation, StoredSetting, write_stored

ROOT = Path(__file__).parent.parent.parent
UPDATES = 4
"""Of a step."""
CONFIG = {
    "train.prompts_per_step": 8,
    "train.samples_per_prompt": 4,
    "train.mini_batch_responses": 8,
    "rollout.max_response_tokens": 8,
    "data.train.task": "chain_sum",
}
Numbers = Mapping[str, float]
OfStep = Callable[[str, int, int], Numbers]
"""(setting, seed, step) -> metrics."""
OfUpdate = Callable[[str, int, int, int], Numbers]
"""(setting, seed, step, update) -> metrics."""
StoredNumbers = tuple[OfStep, OfUpdate]


def make_stored(
    name: str,
    of_step: OfStep,
    of_update: OfUpdate | None = None,
    *,
    steps: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    config: Mapping[str, object] = {},
) -> StoredAblation:
    """The settings are those of configs/ablations/NAME.toml."""
    source = tomllib.loads((ROOT / "configs" / "ablations" / f"{name}.toml").read_text(encoding="utf-8"))
    settings = tuple(
        StoredSetting(
            name=one["name"],
            about=one.get("about", ""),
            control=None if one["name"] == source.get("control") else one.get("control", source.get("control")),
            fragments=(),
            overrides={},
            config={"name": one["name"]},
            seeds=tuple(seeds),
            planned=len(seeds),
        )
        for one in source["settings"]
    )
    facts = Facts(
        name=name,
        about=source.get("about", ""),
        control=source.get("control"),
        command=f"megarl ablate configs/ablations/{name}.toml",
        settings=settings,
        steps=(steps,),
        run_seconds=7200.0,
        wall_seconds=5400.0,
        model={
            "name": "quickstart",
            "warm_steps": 80,
            "parameters": 451_712,
            "layers": 2,
            "hidden_size": 128,
            "vocab_size": 448,
        },
        optimizer={"lr": 5e-4, "schedule": "constant", "warmup_updates": 8},
        config=CONFIG | dict(config),
        versions={"cpus": 2, "date": "2026-11-29", "revisions": ["0123456789ab"], "python": "3.11", "packages": {}},
        left_out={},
        over_problems={},
    )
    return StoredAblation(
        facts=facts,
        table=_table(settings, of_step, steps),
        updates=None if of_update is None else _updates(settings, of_update, steps),
    )


def write_table(folder: Path, stored: StoredAblation) -> Path:
    """Into a folder of tables, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stored.facts.name}.parquet"
    write_stored(path, stored)
    return path


def noise(*key: object) -> float:
    """A number of unit size that the key alone decides."""
    seed = sum(ord(letter) * (at + 1) for at, letter in enumerate(repr(key)))
    return float(np.random.default_rng(seed).standard_normal())


def _table(settings: Sequence[StoredSetting], of_step: OfStep, steps: int) -> pa.Table:
    rows = [
        (f"{one.name}-seed{seed}", one.name, seed, step, metric, float(value))
        for one in settings
        for seed in one.seeds
        for step in range(1, steps + 1)
        for metric, value in sorted(of_step(one.name, seed, step).items())
        if math.isfinite(value)
    ]
    cells, names, seeds, at, metrics, values = zip(*rows, strict=True)
    return pa.table(
        {
            "cell": cells,
            "setting": names,
            "seed": seeds,
            "step": at,
            "metric": metrics,
            "value": pa.array(values, pa.float32()),
        }
    )


def _updates(settings: Sequence[StoredSetting], of_update: OfUpdate, steps: int) -> pa.Table:
    rows = [
        {"cell": f"{one.name}-seed{seed}", "step": step, "update": update, **of_update(one.name, seed, step, update)}
        for one in settings
        for seed in one.seeds
        for step in range(1, steps + 1)
        for update in range(UPDATES)
    ]
    return pa.Table.from_pylist(rows)
