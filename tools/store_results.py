"""What the repository keeps of finished ablations, for docs/results: a small table each, with what was run.

    python tools/store_results.py runs/random-reward-small-ablation-20261129T075742Z
    python tools/store_results.py ABLATION_DIR... --into docs/results/tables

From each directory NAME.parquet, NAME.updates.parquet and NAME.practice.parquet, by the ablation's name. The last is
what `megarl theory` makes of updates and rollouts; runs without either have none. Runs that are not finished are left
out and named. `make results` writes the documents of what is stored.
"""

import argparse
import sys
from pathlib import Path

from results.storing import store_ablation

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.stored import SUFFIX, StoredAblation, updates_path, write_stored
from megarl.config.base import ConfigError
from megarl.theory.practice.collect import practice_of_ablation
from megarl.theory.practice.numbers import ENDING, write_practice

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs" / "results" / "tables"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ablations", type=Path, nargs="+", metavar="ABLATION_DIR", help="that `megarl ablate` made")
    parser.add_argument("--into", type=Path, default=TABLES, help="default: docs/results/tables")
    given = parser.parse_args(arguments)
    try:
        _check_names(given.ablations)
        given.into.mkdir(parents=True, exist_ok=True)
        for path in given.ablations:
            stored = store_ablation(path)
            target = given.into / f"{stored.facts.name}{SUFFIX}"
            write_stored(target, stored)
            _tell(target, stored)
            _store_practice(path, given.into, stored)
    except (OSError, ValueError) as error:
        sys.exit(f"store_results: {error}")


def _check_names(paths: list[Path]) -> None:
    """ValueError where two would be stored as one file: the later one, finished or not, would replace the other."""
    first: dict[str, Path] = {}
    for path in paths:
        name = AblationDirectory.open(path).plan().name
        if name in first:
            raise ValueError(f"{first[name]} and {path} are both of {name}; expected one of each name")
        first[name] = path


def _tell(target: Path, stored: StoredAblation) -> None:
    facts, beside = stored.facts, updates_path(target)
    steps = " to ".join(map(str, dict.fromkeys((facts.steps[0], facts.steps[-1]))))
    print(f"stored   {target} ({_size(target)}): {len(stored.cells)} runs of {steps} steps")
    if stored.updates is not None:
        print(f"         {beside} ({_size(beside)}): {stored.updates.num_rows:,} updates")
    print(f"command  {facts.command or 'unknown: configs/ablations has no such ablation'}")
    for cell, why in facts.left_out.items():
        print(f"left out {cell}: {why}")


def _store_practice(path: Path, into: Path, stored: StoredAblation) -> None:
    """Of the same runs; without updates or rollouts there is nothing to say, and an older file goes."""
    target = into / f"{stored.facts.name}{ENDING}"
    try:
        practice = practice_of_ablation(AblationDirectory.open(path), only=stored.cells)
    except ConfigError as error:
        target.unlink(missing_ok=True)
        print(f"no {target.name}: {error}")
        return
    write_practice(practice, target)
    print(f"         {target} ({_size(target)}): what updates and rollouts say of the theorems")
    for note in practice.notes:
        print(f"         {note}")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1000:.0f} kB"


if __name__ == "__main__":
    main()
