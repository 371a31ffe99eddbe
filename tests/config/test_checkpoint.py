"""The section on saving: when it is on, and times that it takes."""

from pathlib import Path

import pytest

from megarl.config.dump import dump_config
from megarl.config.loader import load_config
from tests.config.text import load_small, problems_of, write_config


@pytest.mark.parametrize(
    ("override", "on"),
    [
        ("checkpoint.keep_last=3", False),
        ("checkpoint.every_steps=5", True),
        ("checkpoint.every_minutes=0.5", True),
        ('checkpoint.end_time="slurm"', True),
    ],
)
def test_when_a_run_saves_itself(override: str, on: bool, tmp_path: Path) -> None:
    assert load_small(tmp_path, override).checkpoint.on is on


@pytest.mark.parametrize("value", ['"2027-01-15T09:00:00+01:00"', "2027-01-15T09:00:00+01:00", "2027-01-15T08:00:00Z"])
def test_an_end_time_is_text_or_one_of_tomls(value: str, tmp_path: Path) -> None:
    config = load_small(tmp_path, f"checkpoint.end_time={value}")
    assert config.checkpoint.ends_at() == 1_800_000_000.0
    again = tmp_path / "again.toml"
    again.write_text(dump_config(config))
    assert load_config(again, ()) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"soon"', 'expected "slurm" or a time such as 2'),
        ('"2027-01-15T09:00:00"', "expected a time with its zone, such as 2"),
        ("2027-01-15T09:00:00", 'found "2027-01-15T09:00:00"; add Z or +01:00'),
        ("7", "expected"),
    ],
)
def test_times_that_are_none(value: str, said: str, tmp_path: Path) -> None:
    (problem,) = problems_of(write_config(tmp_path), f"checkpoint.end_time={value}")
    assert problem.startswith("checkpoint.end_time")
    assert said in problem
