"""Which runs of an ablation have the same engines, and what starts the process that keeps them."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.keepers import Keeper, KeeperStart, start_keeper
from megarl.ablation.launch import Launch, Start
from megarl.ablation.processes import Slot
from megarl.runtime.ray_address import environment_address
from megarl.telemetry.run_directory import make_numbered


def describe_kept(shapes: Mapping[str, str]) -> str | None:
    """Of the runs whose engines are kept, by their shapes; None where none are."""
    if not shapes or environment_address():
        return None
    count = len(set(shapes.values()))
    of = "one shape" if count == 1 else f"{count} shapes"
    return f"engines  of {of}: {len(shapes)} runs that follow each other in one have the same (keep_engines)"


def find_keeper_start(directory: AblationDirectory, launch: Launch, start: Start) -> KeeperStart | None:
    """How the keeper of this run is started; None where it has engines of its own."""
    shape = start.shape
    if shape is None or environment_address():
        return None

    def begin(slot: Slot) -> Keeper:
        directory.keepers.mkdir(exist_ok=True)
        made = make_numbered(directory.keepers, shape)
        return start_keeper(
            [sys.executable, "-m", "megarl.cli.keeper", str(made), *start.arguments[1:]],
            shape=shape,
            slot=slot,
            directory=made,
            working_directory=Path(launch.working_directory),
            environment=os.environ,
        )

    return KeeperStart(shape, begin)
