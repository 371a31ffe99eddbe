"""A sweep: `--array a.b=[1, 2]` as the cells of a grid, one run each."""

import itertools
import tomllib
from collections.abc import Sequence
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.dump import format_value
from megarl.slurm.job import Cell

_MOST_CELLS = 1000


def plan_cells(axes: Sequence[str], *, name: str) -> tuple[Cell, ...]:
    """Every combination of the axes' values, the last axis fastest; () without axes.

    axes: field=[value, ...], a TOML array. name: of the configuration; a cell's is that and its number, so that its run
    directory can be told. ConfigError with everything that is wrong.
    """
    problems: list[str] = []
    parsed = [_parse_axis(axis, problems) for axis in axes]
    fields = [field for field, _ in parsed]
    problems += [
        f"--array {field}: there are several; one array has all of its values"
        for field in sorted({field for field in fields if field and fields.count(field) > 1})
    ]
    problems += [
        f"--array {field}: the cells of a sweep are one job, and have its nodes; submit a job for each"
        for field in fields
        if field.split(".")[0] == "cluster"
    ]
    if problems:
        raise ConfigError("\n".join(problems), problems)
    cells = list(itertools.product(*(values for _, values in parsed))) if parsed else []
    if len(cells) > _MOST_CELLS:
        raise ConfigError(f"--array: {len(cells)} cells are more than {_MOST_CELLS}; submit parts of the grid")
    named = "name" in fields
    return tuple(
        Cell(
            index=index,
            overrides=(
                *(f"{field}={format_value(value)}" for field, value in zip(fields, cell, strict=True)),
                *(() if named else (f"name={name}-{index}",)),
            ),
        )
        for index, cell in enumerate(cells)
    )


def _parse_axis(axis: str, problems: list[str]) -> tuple[str, list[Any]]:
    field, sign, text = axis.partition("=")
    field = field.strip()
    try:
        value = tomllib.loads(f"value = {text}")["value"] if sign else None
    except tomllib.TOMLDecodeError:
        value = None
    if not field or not isinstance(value, list) or not value:
        problems.append(f'--array "{axis}": expected a field and a TOML array of its values, such as train.seed=[0, 1]')
        return "", []
    return field, value
