"""The metrics of a run that goes on: last rows whole, curves bounded, repeated steps once."""

import json
import time
from pathlib import Path

import pytest

from megarl.telemetry.metric_history import RECENT_ROWS, MetricHistory
from megarl.telemetry.sinks import JsonlSink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def history_of(path: Path, **options: int) -> MetricHistory:
    return MetricHistory(path, ("reward/mean", "actor/entropy"), **options)


def write(path: Path, steps: range, *, scale: float = 1.0) -> None:
    sink = JsonlSink(path)
    for step in steps:
        sink.log(step, {"reward/mean": scale * step, "perf/tokens_per_s": 10.0})
    sink.close()


def test_a_run_that_goes_on(path: Path) -> None:
    history = history_of(path)
    assert not history.refresh()
    assert history.last == {}
    write(path, range(1, 4))
    assert history.refresh()
    assert history.curve("reward/mean") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history.curve("actor/entropy") == []
    assert history.last["perf/tokens_per_s"] == 10.0
    write(path, range(4, 40))
    assert history.refresh()
    assert not history.refresh()
    assert [row["step"] for row in history.recent] == list(range(40 - RECENT_ROWS, 40))
    assert len(history.curve("reward/mean")) == 39


def test_steps_made_again_replace_the_first(path: Path) -> None:
    history = history_of(path)
    write(path, range(1, 6))
    history.refresh()
    write(path, range(3, 5), scale=10.0)  # in a file that was not cut
    history.refresh()
    assert history.curve("reward/mean") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [row["step"] for row in history.recent] == [1, 2, 3, 4]


def test_a_run_that_was_cut_back(path: Path) -> None:
    history = history_of(path)
    write(path, range(1, 6))
    history.refresh()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    history.refresh()
    assert history.curve("reward/mean") == [(1, 1.0), (2, 2.0)]


def test_values_that_are_not_there_and_lines_that_are_no_rows(path: Path) -> None:
    rows = [
        '{"step": 1, "reward/mean": null}',
        "nonsense",
        '{"reward/mean": 2}',
        '{"step": 4, "reward/mean": 0.5}',
        "[]",
        '{"step": Infinity, "reward/mean": 1}',
        '{"step": "5", "reward/mean": 1}',
        '{"step": 6, "reward/mean": Infinity, "timing_s/step": NaN}',
    ]
    path.write_text("\n".join(rows) + '\n{"step": 5, "rew')
    history = history_of(path)
    history.refresh()
    assert history.curve("reward/mean") == [(4, 0.5)]
    assert history.last == {"step": 6, "reward/mean": None, "timing_s/step": None}


def test_a_curve_keeps_no_more_than_it_must(path: Path) -> None:
    history = history_of(path, at_once_bytes=1 << 30)
    write(path, range(1, 5001))
    history.refresh()
    curve = history.curve("reward/mean")
    assert 500 <= len(curve) <= 1024
    assert [step for step, _ in curve] == sorted({step for step, _ in curve})
    assert curve[-1] == (5000, 5000.0)
    # A point is the mean of the steps up to its own since the one before.
    before = 0
    for step, value in curve:
        assert before < value <= step
        before = step


def test_of_a_long_run_the_beginning_is_sampled_and_looks_stay_cheap(path: Path) -> None:
    row = {f"name/{number}": float(number) for number in range(100)}
    text = json.dumps(row)[1:]
    with path.open("w") as file:
        for step in range(1, 100_001):
            file.write(f'{{"step": {step}, "reward/mean": {step}, {text}\n')
    assert path.stat().st_size > 1e8
    history = history_of(path)
    began_s = time.perf_counter()
    history.refresh()
    assert time.perf_counter() - began_s < 2.0
    curve = history.curve("reward/mean")
    assert curve[0] == (1, 1.0)
    assert curve[-1] == (100_000, 100_000.0)
    assert len([step for step, _ in curve if step < 90_000]) > 200
    assert all(abs(step - value) < 1000 for step, value in curve)
    assert history.last["step"] == 100_000
    before = Path("/proc/self/io").read_text()
    history.refresh()
    assert int(Path("/proc/self/io").read_text().split()[1]) - int(before.split()[1]) < 50_000
