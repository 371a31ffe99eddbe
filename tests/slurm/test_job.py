"""What a job's options must be, and the numbers that follow."""

import pytest

from megarl.config.base import ConfigError
from megarl.slurm.sweep import plan_cells
from megarl.slurm.times import format_seconds, parse_time_limit
from tests.slurm.jobs import make_job


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-12:30", 131400), ("2-0:0:5", 172805)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "two hours", "1:2:3:4", "-5", "1.5", "INFINITE"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_time_limit(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (119, "119 s"), (180, "3 min"), (7500, "2 h 5 min"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_ages_are_read_by_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_signal_comes_before_all_that_follows_it() -> None:
    job = make_job()
    assert job.signal_s == 720
    assert job.stop_within_s < job.patience_s < job.signal_s
    assert make_job(stop_within_s=20, end_margin_s=0).patience_s == 10


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"time": "12:00"}, "--time 12:00 is 720 s, but the run is asked to save 720 s before its end"),
        ({"time": "soon"}, '--time: expected a time such as 30 (minutes), 2:00:00 or 1-12:00:00, found "soon"'),
        ({"partition": "a b"}, '--partition "a b": expected one word'),
        ({"sbatch": ("-q high",)}, '--sbatch "-q high": expected an option of sbatch in its long form'),
        ({"sbatch": ("--signal=USR2",)}, "--sbatch --signal=USR2: the script sets --signal itself"),
        ({"at_once": 2}, "--at-once: there is no sweep; give --array a.b=[...]"),
        ({"name": "a b"}, 'name "a b": expected letters'),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_job(**changes)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(text)


def test_a_sweep_is_every_combination_with_the_last_axis_fastest() -> None:
    cells = plan_cells(["train.seed=[0, 1]", "objective.clip.high=[0.28, inf]"], name="x")
    assert [cell.overrides for cell in cells] == [
        ("train.seed=0", "objective.clip.high=0.28", "name=x-0"),
        ("train.seed=0", "objective.clip.high=inf", "name=x-1"),
        ("train.seed=1", "objective.clip.high=0.28", "name=x-2"),
        ("train.seed=1", "objective.clip.high=inf", "name=x-3"),
    ]
    assert [cell.index for cell in cells] == [0, 1, 2, 3]
    assert plan_cells([], name="x") == ()
    assert plan_cells(['name=["a", "b"]'], name="x")[1].overrides == ('name="b"',)


def test_a_sweep_that_is_none_is_refused_with_everything_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_cells(["train.seed=0", "b=[]", "c=[1", "d", "e=[1]", "e=[2]"], name="x")
    assert [text[: text.index(":")] for text in caught.value.problems] == [
        '--array "train.seed=0"', '--array "b=[]"', '--array "c=[1"', '--array "d"', "--array e",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"--array cluster\.nodes: the cells of a sweep are one job"):
        plan_cells(["cluster.nodes=[1, 2]"], name="x")
    with pytest.raises(ConfigError, match="1089 cells are more than 1000"):
        plan_cells([f"a={list(range(33))}", f"b={list(range(33))}"], name="x")
