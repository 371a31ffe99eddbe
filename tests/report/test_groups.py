"""Which runs are one setting, what they are called, and the table of what differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megarl.report.groups import group_runs, tabulate_differences
from megarl.report.run_data import RunData
from tests.report.run_rows import data_of


def run(name: str, config: Mapping[str, Any]) -> RunData:
    data = data_of([{"step": 1}])
    data.run = type(data.run)(Path("runs") / name)
    data.config = {"name": name, "logging": {"directory": f"runs/{name}"}, **config}
    return data


def clipped(name: str, high: float, seed: int, **train: Any) -> RunData:
    return run(name, {"objective": {"clip": {"low": 0.2, "high": high}}, "train": {"seed": seed, **train}})


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    runs = [clipped("a", 0.2, 0), clipped("b", 0.28, 0), clipped("c", 0.2, 1), clipped("d", 0.28, 1, steps=9)]
    groups = group_runs(runs)
    assert [[one.name for one in group.runs] for group in groups] == [["a", "c"], ["b"], ["d"]]
    assert [group.seeds for group in groups] == ["0, 1", "0", "1"]


def test_groups_are_called_what_tells_them_apart() -> None:
    groups = group_runs([clipped("a", 0.2, 0), clipped("b", 0.28, 0)])
    assert [group.label for group in groups] == ["clip.high=0.2", "clip.high=0.28"]
    one, other = clipped("long-a", 0.2, 0), clipped("long-b", 0.3, 0)
    other.config["objective"] |= {f"field{number}": "x" * 20 for number in range(4)}
    assert [group.label for group in group_runs([one, other])] == ["long-a", "long-b"]
    other.config["name"] = "long-a"
    assert [group.label for group in group_runs([one, other])] == ["long-a (a)", "long-a (b)"]


def test_an_ablation_s_settings_are_the_groups() -> None:
    runs = [clipped("a", 0.2, 0), clipped("b", 0.28, 0), clipped("c", 0.2, 1)]
    assert [group.label for group in group_runs(runs, ["control", "wide", "control"])] == ["control", "wide"]


def test_runs_without_a_configuration_are_like_no_other() -> None:
    runs = [data_of([{"step": 1}]) for _ in range(2)]
    for number, one in enumerate(runs):
        one.run = type(one.run)(Path(f"runs/{number}"))
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["0", "1"]
    assert {group.seeds for group in groups} == {"–"}


def test_only_fields_that_differ_are_in_the_table_and_the_narrower_way() -> None:
    runs = [clipped("a", 0.2, 0), clipped("b", 0.28, 3), clipped("c", 0.28, 4)]
    runs[1].config["objective"]["clip"]["dual"] = runs[2].config["objective"]["clip"]["dual"] = "off"
    table = tabulate_differences(group_runs(runs))
    assert table.heads == ["field", "clip.high=0.2, clip.dual=–", "clip.high=0.28, clip.dual=off"]
    assert table.rows == [
        ["objective.clip.high", "0.2", "0.28"],
        ["objective.clip.dual", "–", '"off"'],
        ["train.seed", "0", "3, 4"],
        ["runs", "1", "2"],
    ]
    assert table.num_fields == 2
    many = tabulate_differences(group_runs([clipped(str(number), number / 10, 0) for number in range(9)]))
    assert many.heads == ["setting", "objective.clip.high", "train.seed", "runs"]
    assert many.rows[2] == ["clip.high=0.2", "0.2", "0", "1"]


@pytest.mark.parametrize("count", [2, 35])
def test_no_two_groups_look_alike(count: int) -> None:
    groups = group_runs([clipped(str(number), float(number), 0) for number in range(count)])
    assert len({(group.colour, group.dash) for group in groups}) == count
