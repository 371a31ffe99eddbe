"""From the directory of a finished ablation to what the repository keeps of it."""

import json
import math
import struct
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megarl.ablation.cell_runs import CellRun, read_cells
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.stored import UPDATE_KEYS, Facts, StoredAblation, StoredSetting
from megarl.ablation.table import build_table
from megarl.models.families import read_model_shape
from megarl.report.groups import flatten, is_same_setting
from megarl.report.run_data import RunData, iterate_updates, read_run
from megarl.telemetry.run_directory import RunDirectory
from results.command import find_command
from results.kept import BITS, METRICS, UPDATE_METRICS, is_kept

_PLACES = ("model.path",)
"""Fields that say where something lies and not what is run."""


def store_ablation(path: Path) -> StoredAblation:
    """FileNotFoundError where `path` is no ablation's directory; ValueError where it is damaged, no run of it is
    finished, or finished runs differ in what the facts have once."""
    directory = AblationDirectory.open(path)
    cells = read_cells(directory)
    finished = [cell for cell in cells if cell.is_finished]
    if not finished:
        raise ValueError(f"{path}: no run is finished; expected one at least (megarl ablate --resume {path})")
    if unread := [f"{cell.cell.name}: {text}" for cell in finished for text in cell.problems]:
        raise ValueError(f"{path}: {unread[0]}; expected rows that can be read")
    runs = {cell.cell.name: read_run(RunDirectory(cell.run)) for cell in finished if cell.run is not None}
    return StoredAblation(
        facts=_facts(directory, cells, runs), table=_table(finished), updates=_updates(finished, runs)
    )


def _table(cells: Sequence[CellRun]) -> pa.Table:
    """By cell, metric and step: a metric's numbers follow each other, which stores well."""
    table = build_table(cells)
    kept = [name for name in table["metric"].unique().to_pylist() if is_kept(name, METRICS)]
    table = table.filter(pa.compute.is_in(table["metric"], pa.array(kept)))
    order = {cell.cell.name: index for index, cell in enumerate(cells)}
    number = pa.array([order[name] for name in table["cell"].to_pylist()])
    table = table.append_column("order", number)
    table = table.sort_by([("order", "ascending"), ("metric", "ascending"), ("step", "ascending")])
    table = table.drop_columns("order")
    return table.set_column(table.column_names.index("value"), "value", table["value"].cast(pa.float32()))


def _updates(cells: Sequence[CellRun], runs: Mapping[str, RunData]) -> pa.Table | None:
    """None: no run has written an update."""
    rows = [row for cell in cells for row in _updates_of(cell.cell.name, runs[cell.cell.name].run)]
    if not rows:
        return None
    names = sorted({name for row in rows for name in row if is_kept(name, UPDATE_METRICS)})
    columns: dict[str, pa.Array] = {
        "cell": pa.array([row["cell"] for row in rows], pa.string()),
        "step": pa.array([int(row["step"]) for row in rows], pa.int32()),
        "update": pa.array([int(row["update"]) for row in rows], pa.int32()),
    }
    assert tuple(columns) == UPDATE_KEYS
    for name in names:
        values = np.array([math.nan if (value := row.get(name)) is None else value for row in rows], np.float64)
        columns[name] = pa.array(_shortened(values), pa.float32(), mask=~np.isfinite(values))
    return pa.table(columns)


def _updates_of(cell: str, run: RunDirectory) -> list[dict[str, Any]]:
    """ValueError where a line cannot be read, or does not say whose it is."""
    problems: list[str] = []
    rows = list(iterate_updates(run, problems))
    path = run.updates_path
    if problems:
        raise ValueError(f"{path.parent}: {problems[0].removesuffix('; left out')}")
    if rows and not path.read_bytes().endswith(b"\n"):
        raise ValueError(f"{path} ends within a line; expected a finished run's, of which every line is whole")
    for row in rows:
        if missing := {"step", "update"} - row.keys():
            raise ValueError(f"{path} has a row without {sorted(missing)[0]!r}; expected step and update in each")
    return [{"cell": cell, **row} for row in rows]


def _shortened(values: np.ndarray) -> np.ndarray:
    """The nearest float32 with `BITS` bits of mantissa."""
    mantissa, exponent = np.frexp(np.nan_to_num(values))
    return np.ldexp(np.round(mantissa * 2.0 ** (BITS + 1)) / 2.0 ** (BITS + 1), exponent).astype(np.float32)


def _facts(directory: AblationDirectory, cells: Sequence[CellRun], runs: Mapping[str, RunData]) -> Facts:
    plan = directory.plan()
    source = tomllib.loads(directory.source_path.read_text(encoding="utf-8"))
    configs = {name: _config(run) for name, run in runs.items()}
    shared = _shared(list(configs.values()))
    settings = []
    for one in plan.settings:
        having = [cell for cell in plan.cells_of(one.name) if cell.name in runs]
        common = _shared([configs[cell.name] for cell in having])
        settings.append(
            StoredSetting(
                name=one.name,
                about=one.about,
                control=plan.control_of(one.name),
                fragments=tuple(_in_repository(name) for name in one.fragments),
                overrides={path: value for path, value in one.values.items() if path not in _PLACES},
                config={path: value for path, value in common.items() if path not in shared},
                seeds=tuple(cell.seed for cell in having),
                planned=len(plan.cells_of(one.name)),
            )
        )
    finished = [cell for cell in cells if cell.cell.name in runs]
    return Facts(
        name=plan.name,
        about=str(source.get("about", "")),
        control=plan.control,
        command=find_command(directory, source),
        settings=tuple(settings),
        steps=tuple(sorted({cell.last_step for cell in finished})),
        **_times(directory, list(runs.values())),
        model=_model(directory, next(iter(runs.values()))),
        optimizer={
            path.removeprefix("policy.optimizer."): value
            for path, value in shared.items()
            if path.startswith("policy.optimizer.")
        },
        config=shared,
        versions=_versions(list(runs.values())),
        over_problems=_over_problems(directory),
        left_out={cell.cell.name: cell.describe() for cell in cells if cell.cell.name not in runs},
    )


def _over_problems(directory: AblationDirectory) -> dict[str, dict[str, dict[str, Any]]]:
    """From summary.json, which an ablation has when it has ended; of pass@k the largest k."""
    if not directory.summary_path.is_file():
        return {}
    try:
        return _intervals(json.loads(directory.summary_path.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory.summary_path} is damaged ({type(error).__name__}: {error}); expected what the ablation wrote "
            f"at its end (megarl ablate --resume {directory.path} writes it again)"
        ) from error


def _intervals(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for one in summary["settings"]:
        largest = _largest_k(one["measures"])
        names = [name for name in one["measures"] if "/mean@" in name or name in largest]
        of_setting = {
            name: {"value": value, "difference": ((one["differences"] or {}).get(name) or {}).get("problems")}
            for name in names
            if (value := one["measures"][name]["problems"]) is not None
        }
        if of_setting:
            found[one["name"]] = of_setting
    return found


def _largest_k(names: Iterable[str]) -> set[str]:
    """pass@k with the largest k of each benchmark."""
    found: dict[str, int] = {}
    for name in names:
        benchmark, at, k = name.partition("/pass@")
        if at:
            found[benchmark] = max(found.get(benchmark, 0), int(k))
    return {f"{benchmark}/pass@{k}" for benchmark, k in found.items()}


def _config(run: RunData) -> dict[str, Any]:
    """Flat, without what says where a run lies and what it is called. ValueError without one."""
    if not run.config:
        raise ValueError(f"{run.name}: config.toml is missing or damaged; expected what the run was started with")
    flat = flatten(run.config)
    return {path: _without_folder(value) for path, value in flat.items() if not is_same_setting(path)}


def _without_folder(value: Any) -> Any:
    """Of a path of this machine what a reader may know: its last part."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have, and alike."""
    first, *others = configs or [{}]
    return {path: value for path, value in first.items() if all(other.get(path) == value for other in others)}


def _in_repository(name: str) -> str:
    """configs/methods/x.toml of /somewhere/configs/methods/x.toml."""
    parts = Path(name).parts
    return "/".join(parts[parts.index("configs") :]) if "configs" in parts else parts[-1]


def _times(directory: AblationDirectory, runs: Sequence[RunData]) -> dict[str, float]:
    """From when each process wrote that it began to its last word."""
    spans = [_span(run.run) for run in runs]
    warm = RunDirectory(directory.warm.resolve())
    whole = [*spans, _span(warm)] if warm.state_path.is_file() else spans
    wall = max(end for _, end in whole) - min(start for start, _ in whole)
    return {"run_seconds": round(sum(end - start for start, end in spans), 1), "wall_seconds": round(wall, 1)}


def _span(run: RunDirectory) -> tuple[float, float]:
    ended = json.loads(run.state_path.read_text(encoding="utf-8"))["updated"]
    return (
        datetime.fromisoformat(run.read_versions()["started"]).timestamp(),
        datetime.fromisoformat(ended).timestamp(),
    )


def _model(directory: AblationDirectory, run: RunData) -> dict[str, Any]:
    """Of the weights that the runs began with."""
    warm = RunDirectory(directory.warm.resolve())
    began_with = Path(str(flatten(run.config)["model.path"]))
    named, warm_steps = began_with.name, 0
    if warm.config_path.is_file():
        config = flatten(tomllib.loads(warm.config_path.read_text(encoding="utf-8")))
        named, warm_steps = Path(config["model.path"]).name, config["sft.steps"]
    checkpoint = began_with if began_with.is_dir() else _exported(run)
    shape = read_model_shape(checkpoint)
    return {
        "name": named,
        "warm_steps": warm_steps,
        "parameters": _count_parameters(checkpoint),
        "layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "vocab_size": shape.vocab_size,
    }


def _exported(run: RunData) -> Path:
    """Weights of the same shape, where those that the run began with are gone. ValueError without."""
    if found := sorted(run.run.exports.glob("step-*/config.json")):
        return found[0].parent
    raise ValueError(f"{run.name}: neither the weights it began with nor any it exported are there; expected either")


def _count_parameters(checkpoint: Path) -> int:
    """From the heads of its safetensors files; tied weights count once."""
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            head = json.loads(file.read(size))
        total += sum(math.prod(one["shape"]) for name, one in head.items() if name != "__metadata__")
    return total


def _versions(runs: Iterable[RunData]) -> dict[str, Any]:
    """The first run's; every revision of megarl that a run had."""
    found = [run.versions or {} for run in runs]
    first = {key: found[0].get(key) for key in ("python", "cpus", "memory_gib", "packages")}
    revisions = sorted({_revision(one.get("git") or {}) for one in found})
    return first | {"revisions": revisions, "date": min(str(one.get("started", ""))[:10] for one in found)}


def _revision(git: Mapping[str, Any]) -> str:
    return str(git.get("revision") or "unknown")[:12] + (" with changes" if git.get("dirty") else "")
