"""How far a run is, from the end of its metrics file."""

import json
import math
from pathlib import Path

import pytest

from megarl.ablation.progress import Progress, ProgressReader


def line(step: int, timestamp: float, **values: float) -> str:
    return json.dumps({"step": step, "timestamp": timestamp, **values}) + "\n"


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_before_the_first_step_nothing_is_known(metrics: Path) -> None:
    assert ProgressReader().read(metrics, steps=9) == Progress(steps=9)
    metrics.write_text('{"step": 1, "timest')
    assert ProgressReader().read(metrics, steps=9) == Progress(steps=9)


def test_the_last_whole_line_counts_and_the_pace_is_between_two(metrics: Path) -> None:
    first = line(1, 100.0, **{"reward/mean": 0.1, "actor/entropy": 2.0})
    second = line(2, 106.0, **{"reward/mean": 0.4, "actor/entropy": 1.5})
    metrics.write_text(first + second + '{"step": 3')
    found = ProgressReader().read(metrics, steps=12)
    assert found == Progress(step=2, steps=12, reward=0.4, entropy=1.5, seconds_per_step=6.0)
    assert found.seconds_left == 60.0


def test_after_one_step_its_own_time_is_the_pace(metrics: Path) -> None:
    metrics.write_text(line(1, 100.0, **{"timing_s/step": 4.0}))
    assert ProgressReader().read(metrics, steps=3).seconds_left == 8.0


def test_the_time_between_two_starts_is_no_pace(metrics: Path) -> None:
    """A run that went on with step 5 long after step 2."""
    metrics.write_text(line(2, 100.0) + line(5, 9000.0, **{"timing_s/step": 3.0}))
    assert ProgressReader().read(metrics, steps=6).seconds_left == 3.0


def test_a_file_is_read_again_when_it_has_grown_or_was_cut_back(metrics: Path) -> None:
    reader = ProgressReader()
    metrics.write_text(line(1, 1.0) + line(2, 2.0))
    assert reader.read(metrics, steps=4).step == 2
    metrics.write_text(line(1, 1.0))
    assert reader.read(metrics, steps=4).step == 1


def test_lines_longer_than_what_is_read_are_passed_over(metrics: Path) -> None:
    padding = {f"name{number}": math.pi for number in range(4000)}
    metrics.write_text(line(1, 1.0, **padding) + line(2, 3.0, **{"reward/mean": 0.5}))
    assert ProgressReader().read(metrics, steps=4).reward == 0.5


def test_a_file_that_cannot_be_opened_is_none(tmp_path: Path) -> None:
    """It may be gone since it was found: a screen must not end the runs that it shows."""
    assert ProgressReader().read(tmp_path, steps=3) == Progress(steps=3)
