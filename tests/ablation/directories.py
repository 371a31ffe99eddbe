"""Small ablations on disk, for the tests of this folder and of those who read one."""

import math
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, Setting
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.telemetry.runs import make_config


def make_plan(seeds: tuple[int, ...] = (0, 1)) -> AblationPlan:
    """Two settings, each with these seeds."""
    settings = (
        Setting(name="low0.2", values={"objective.clip.low": 0.2, "objective.clip.high": math.inf}),
        Setting(name="dapo", about="as published", fragments=("configs/methods/dapo.toml",)),
    )
    names = [(setting.name, seed) for seed in seeds for setting in settings]
    cells = [
        Cell(index=at, name=f"{name}-seed{seed}", setting=name, seed=seed, run=f"cells/{name}-seed{seed}")
        for at, (name, seed) in enumerate(names)
    ]
    return AblationPlan(name="clip", settings=settings, cells=tuple(cells), control="low0.2")


def make_directory(parent: Path, plan: AblationPlan | None = None) -> AblationDirectory:
    path = parent / "clip-ablation"
    path.mkdir()
    return AblationDirectory.create(path, plan or make_plan(), source="# why\n")


def begin_run(directory: AblationDirectory, cell: Cell, state: RunState) -> RunDirectory:
    """A run directory of the cell in this state, and the link to it."""
    run = RunDirectory.create(make_config(directory.runs, name=cell.name), source=None, verb="train")
    run.write_state(state)
    directory.link_of(cell).symlink_to(run.path)
    return run
