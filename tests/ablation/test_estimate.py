"""Room and hours of an ablation: arithmetic over sizes that are known and seconds that were measured."""

from pathlib import Path

import pytest

from megarl.ablation.estimate import (
    CellRoom,
    CellToRun,
    Pace,
    cell_room,
    count_due,
    estimate_ablation,
    makespan,
    measure_pace,
    shape_of,
)
from megarl.config.loader import load_config
from megarl.config.rollout_files import run_bytes
from megarl.config.run import RunConfig

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
PACE = Pace(start_s=60.0, step_s=10.0, eval_s=5.0, steps=9, source="earlier")


def quickstart(*overrides: str) -> RunConfig:
    return load_config(QUICKSTART, overrides)


def evaluated(*overrides: str) -> RunConfig:
    data = 'eval.benchmarks.sums.data={source = "reasoning_gym", task = "chain_sum"}'
    return quickstart(data, "eval.every_steps=10", *overrides)


@pytest.mark.parametrize(("steps", "every", "count"), [(30, 0, 1), (30, 10, 3), (30, 7, 5), (30, 40, 1), (1, 1, 1)])
def test_how_often_something_is_due(steps: int, every: int, count: int) -> None:
    """As the loop does it: every so many steps, and after the last."""
    assert count_due(steps, every) == count
    if every:
        assert count == sum(step % every == 0 or step == steps for step in range(1, steps + 1))


def test_room_of_a_run() -> None:
    config = quickstart("train.export_every=7")
    assert cell_room(config, weights_bytes=1000, left_bytes=300, most_bytes=450) == CellRoom(
        exports=5000, checkpoints=300, writing=150, rollouts=run_bytes(config)
    )


def rows(*gaps: float, start: float = 100.0, evaluations: tuple[int, ...] = ()) -> list[dict[str, float | None]]:
    """From step 1; its own step took 20 s of what lay before it."""
    found: list[dict[str, float | None]] = []
    now = start
    for step, gap in enumerate(gaps, start=1):
        now += gap
        row: dict[str, float | None] = {"step": step, "timestamp": now, "timing_s/step": min(gap, 20.0)}
        found.append(row | ({"eval/sums/mean@8": 0.5} if step in evaluations else {}))
    return found


def test_a_pace_is_what_lies_between_rows() -> None:
    pace = measure_pace(rows(80.0, 10.0, 12.0, 17.0, 11.0, evaluations=(4,)), started_s=100.0, source="x")
    assert pace == Pace(start_s=60.0, step_s=11.0, eval_s=6.0, steps=3, source="x")


def test_an_evaluation_before_the_first_step_belongs_to_the_start() -> None:
    start: dict[str, float | None] = {"step": 0, "timestamp": 190.0, "eval/sums/mean@8": 0.2, "timing_s/eval": 30.0}
    pace = measure_pace([start, *rows(90.0, 10.0, 12.0, start=110.0)], started_s=100.0, source="x")
    assert pace == Pace(start_s=90.0, step_s=11.0, eval_s=0.0, steps=2, source="x")


def test_a_night_between_two_steps_is_no_pace() -> None:
    pace = measure_pace(rows(20.0, 10.0, 30_000.0, 10.0, 10.0), started_s=100.0, source="x")
    assert pace is not None
    assert pace.step_s == 10.0


def test_too_few_steps_are_no_pace() -> None:
    assert measure_pace([], started_s=0.0, source="x") is None
    assert measure_pace(rows(80.0, 10.0), started_s=0.0, source="x") is None
    assert measure_pace([row | {"timestamp": None} for row in rows(1.0, 1.0, 1.0)], started_s=0.0, source="x") is None


def test_seconds_of_a_run() -> None:
    assert PACE.seconds(quickstart()) == 60 + 30 * 10
    assert PACE.seconds(evaluated()) == 60 + 30 * 10 + 3 * 5
    # 12 steps made: 18 steps, and the evaluations after 20 and 30.
    assert PACE.seconds(evaluated(), done=12) == 18 * 10 + 2 * 5
    assert PACE.seconds(evaluated(), done=30) == 0


def test_cells_side_by_side() -> None:
    assert makespan([3.0, 3.0, 3.0], 1) == 9.0
    assert makespan([5.0, 1.0, 1.0, 4.0], 2) == 6.0  # the second place has 1, 1 and 4
    assert makespan([5.0], 4) == 5.0
    assert makespan([], 2) == 0.0


def test_cells_add_up() -> None:
    room = CellRoom(exports=10, checkpoints=20, rollouts=300)
    cells = [CellToRun(name=name, config=quickstart(), room=room) for name in ("a", "b")]
    found = estimate_ablation(cells, {"a": PACE, "b": PACE}, at_once=1, free_bytes=10**6)
    assert found.room == CellRoom(exports=20, checkpoints=40, rollouts=600)
    assert (found.cells, found.seconds, found.paces, found.unknown) == (2, 720.0, (PACE,), ())
    assert (found.problem, found.warning) == (None, None)
    # What is there only while a run runs is counted for as many as run at once.
    running = [CellToRun(name=str(size), config=quickstart(), room=CellRoom(writing=size)) for size in (5, 9, 7)]
    for at_once, writing in ((1, 9), (2, 16), (5, 21)):
        assert estimate_ablation(running, {}, at_once=at_once, free_bytes=0).room == CellRoom(writing=writing)
    half = estimate_ablation(cells, {"a": PACE}, at_once=1, free_bytes=10**6)
    assert (half.seconds, half.unknown) == (None, ("b",))


def test_a_disk_that_is_too_small() -> None:
    """What is certain must fit; rollouts that might not are told."""
    cells = [
        CellToRun(name="a", config=quickstart(), room=CellRoom(exports=10**9, checkpoints=2 * 10**9, rollouts=10**9))
    ]
    refused = estimate_ablation(cells, {}, at_once=1, free_bytes=3 * 10**9 - 1)
    assert refused.problem is not None
    assert "all 1 runs take 3 GB, but the disk has 3 GB free" in refused.problem
    assert refused.warning is None
    doubtful = estimate_ablation(cells, {}, at_once=1, free_bytes=4 * 10**9 - 1)
    assert doubtful.problem is None
    assert doubtful.warning is not None
    assert "up to 4 GB" in doubtful.warning
    assert estimate_ablation(cells, {}, at_once=1, free_bytes=4 * 10**9).warning is None


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("objective.clip.high=inf", True),
        ("train.seed=3", True),
        ("train.steps=7", True),
        ("train.samples_per_prompt=8", False),
        ("rollout.max_response_tokens=128", False),
        ("parallel.tensor=1", False),
        ("objective.weights.high_entropy={}", False),
        ("model.dtype=bfloat16", False),
    ],
)
def test_what_a_step_takes_depends_on_its_shape(override: str, same: bool) -> None:
    assert (shape_of(quickstart(override), "m") == shape_of(quickstart(), "m")) is same
    assert shape_of(quickstart(), "m") != shape_of(quickstart(), "n")
