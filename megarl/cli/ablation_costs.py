"""What the runs of an ablation will take, from their configurations, models, and runs that were made before."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from megarl.ablation.cells import Ablation
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.estimate import (
    CellRoom,
    CellToRun,
    Estimate,
    Pace,
    cell_room,
    estimate_ablation,
    measure_pace,
    shape_of,
)
from megarl.ablation.launch import Launch
from megarl.cli.ablation_tables import print_estimate
from megarl.cli.machine_paths import nearest_directory
from megarl.cli.plan_config import find_shape
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError, ModelShape
from megarl.planning.checkpoint_size import checkpoint_bytes, export_bytes, left_checkpoints, most_checkpoints
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_readable_metrics

_NEWEST = 50
"""Earlier runs that are looked at."""


def estimate_costs(
    configs: Mapping[str, RunConfig],
    *,
    file: Path,
    output: Path,
    at_once: int,
    directory: AblationDirectory | None = None,
) -> Estimate:
    """Of the cells that are not finished.

    configs: of every cell by its name. file: the ablation's, beside which shapes of models are looked for that are not
    on this machine. output: below which the ablation's directory is made, and earlier runs may lie. directory: of an
    ablation that has begun. ConfigError where a model's sizes cannot be told.
    """
    shapes = {model: _read_shape(model, file) for model in {config.model.path for config in configs.values()}}
    done = _steps_done(directory) if directory else {}
    cells = [
        CellToRun(name=name, config=config, room=room_of(config, shapes[config.model.path]), done=done.get(name))
        for name, config in configs.items()
        if done.get(name, 0) < config.train.steps
    ]
    paces = dict(_match_paces(cells, shapes, file, _earlier_runs(output, directory)))
    free = shutil.disk_usage(nearest_directory(output)).free
    return estimate_ablation(cells, paces, at_once=at_once, free_bytes=free)


def check_costs(console: Console, ablation: Ablation, *, at_once: int) -> None:
    """Print what its runs will take, beside a shared warm start. ConfigError where the disk has no room for them."""
    configs = {run.cell.name: run.config for run in ablation.runs}
    output = Path(ablation.config.output).expanduser()
    estimate = estimate_costs(configs, file=ablation.file, output=output, at_once=at_once)
    if estimate.problem:
        raise ConfigError(f"{ablation.file}: {estimate.problem}", [estimate.problem])
    print_estimate(console, estimate)


def print_rest(console: Console, directory: AblationDirectory, launch: Launch, *, at_once: int) -> None:
    """Of an ablation that goes on: what the runs that are not finished will take, hours from those that have begun.
    Nothing is refused: part of their room is taken already."""
    try:
        configs = {
            name: load_config(Path(start.arguments[1]), start.arguments[2:]) for name, start in launch.cells.items()
        }
        estimate = estimate_costs(
            configs, file=directory.path, output=directory.path.parent, at_once=at_once, directory=directory
        )
    except ConfigError as error:  # the model is seen from another directory, or its warm start is not made yet
        console.print(Text(f"room and hours are not known: {error}"), soft_wrap=True)
        return
    if estimate.cells:
        print_estimate(console, estimate)


def room_of(config: RunConfig, shape: ModelShape) -> CellRoom:
    """What one run leaves on the disk."""
    each = checkpoint_bytes(shape, config)
    return cell_room(
        config,
        weights_bytes=export_bytes(shape, config),
        left_bytes=left_checkpoints(config) * each,
        most_bytes=most_checkpoints(config) * each,
    )


def pace_of_run(path: Path) -> Pace | None:
    """Of a run directory; None: it has made too few steps, or its files do not say."""
    run = RunDirectory(path)
    try:
        started = datetime.fromisoformat(run.read_versions()["started"]).timestamp()
        rows, _ = read_readable_metrics(run.metrics_path)
    except (OSError, ValueError, KeyError):
        return None
    return measure_pace(rows, started_s=started, source=path.name)


def _read_shape(model: str, file: Path) -> ModelShape:
    try:
        return read_model_shape(find_shape(model, near=file)[0])
    except ModelError as error:
        raise ConfigError(str(error)) from None


def _steps_done(directory: AblationDirectory) -> dict[str, int]:
    """Of the cells that have begun, by name."""
    found = {}
    for cell in directory.plan().cells:
        if (run := directory.run_of(cell)) is not None:
            with suppress(ValueError):  # a damaged state is told where the run goes on
                found[cell.name] = RunDirectory(run).read_state().step
    return found


def _match_paces(
    cells: list[CellToRun], shapes: Mapping[str, ModelShape], file: Path, runs: list[Path]
) -> Iterator[tuple[str, Pace]]:
    """(a cell's name, the pace of the newest run of its shape)."""
    wanted = {one.name: shape_of(one.config, shapes[one.config.model.path]) for one in cells}
    measured: list[tuple[dict[str, Any], Pace]] = []
    for run in runs:
        pace = pace_of_run(run)
        config = _load_earlier(run) if pace else None
        if pace is None or config is None:
            continue
        try:
            measured.append((shape_of(config, _read_shape(config.model.path, file)), pace))
        except ConfigError:  # its model is gone
            continue
    for name, shape in wanted.items():
        pace = next((pace for of_run, pace in measured if of_run == shape), None)
        if pace is not None:
            yield name, pace


def _earlier_runs(output: Path, directory: AblationDirectory | None) -> list[Path]:
    """Run directories, newest first, those of this ablation before others."""
    own = list(directory.runs.glob("*/metrics.jsonl")) if directory else []
    others = [*output.glob("*/metrics.jsonl"), *output.glob("*/cells/runs/*/metrics.jsonl")]
    found = [*_newest_first(own), *_newest_first(path for path in others if not path.parent.is_symlink())]
    return list(dict.fromkeys(path.parent.resolve() for path in found))[:_NEWEST]


def _newest_first(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _load_earlier(run: Path) -> RunConfig | None:
    """None: of another version of megarl."""
    try:
        return load_config(RunDirectory(run).config_path)
    except (ConfigError, OSError):
        return None
