"""After which steps a run is saved, and when its time is over, by a clock that the test turns."""

import pytest

from megarl.config.base import ConfigError
from megarl.config.checkpoint import CheckpointConfig
from megarl.controller.cadence import Cadence
from megarl.controller.stopping import StopRequest

NOON = 1_800_000_000.0
END = "2027-01-15T09:00:00+01:00"


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def make_cadence(clock: Clock, **config: object) -> Cadence:
    return Cadence(CheckpointConfig(**config), steps=10, clock=clock, timer=clock)


def test_a_run_that_saves_nothing() -> None:
    cadence = make_cadence(Clock())
    assert not any(cadence.save_due(step) for step in range(1, 11))
    assert cadence.time_is_over() is None


def test_saves_by_steps_and_after_the_last() -> None:
    cadence = make_cadence(Clock(), every_steps=4)
    assert [step for step in range(1, 11) if cadence.save_due(step)] == [4, 8, 10]


def test_saves_by_minutes_count_from_the_begin_of_the_one_before() -> None:
    clock = Clock()
    cadence = make_cadence(clock, every_minutes=2.0)
    clock.now += 1000.0  # the workers start
    cadence.begin()
    saved = []
    for step in range(1, 11):
        clock.now += 50.0
        cadence.end_step()
        if cadence.save_due(step):
            saved.append(step)
            cadence.begin_save()
    assert saved == [3, 6, 9, 10]


@pytest.mark.parametrize("set_by", [-7200.0, 86400.0])
def test_a_clock_that_is_set_moves_the_end_and_nothing_else(set_by: float) -> None:
    """Back: saves by minutes would wait for hours. On: a step would have lasted a day, and no other could follow."""
    clock, timer = Clock(), Clock()
    config = CheckpointConfig(every_minutes=1.0, end_time="2027-02-15T09:00:00+01:00", end_margin_s=0.0)
    cadence = Cadence(config, steps=10, clock=clock, timer=timer)
    cadence.begin()
    clock.now += set_by
    timer.now += 40.0
    cadence.end_step()
    assert not cadence.save_due(1)
    timer.now += 40.0
    cadence.end_step()
    assert cadence.save_due(2)
    assert cadence.time_is_over() is None
    end = config.ends_at()
    assert end is not None
    clock.now = end - 39.0
    assert str(cadence.time_is_over()).startswith("checkpoint.end_time is in 39 s, and another step needs 40 s")


def test_an_end_that_is_over_is_refused_before_anything_starts() -> None:
    config = CheckpointConfig(end_time=END)
    config.check_end(NOON - 1.0)
    with pytest.raises(ConfigError, match=r'end_time "2027-01-15T09:00:00\+01:00" was 2 minutes ago: .* a later one'):
        config.check_end(NOON + 120.0)
    with pytest.raises(ConfigError, match=r'end_time "slurm" was 1 minutes ago'):
        CheckpointConfig(end_time="slurm").check_end(NOON + 60.0, {"SLURM_JOB_END_TIME": "1800000000"})
    CheckpointConfig().check_end(NOON)


def test_the_time_is_over_when_another_longest_step_and_a_save_do_not_fit() -> None:
    clock = Clock()
    config = CheckpointConfig(end_time=END, end_margin_s=20.0)
    end = config.ends_at()
    assert end == 1_800_000_000.0
    clock.now = end - 900.0
    cadence = Cadence(config, steps=10, clock=clock, timer=clock)
    clock.now += 600.0  # the workers start, which is no step
    cadence.begin()
    for seconds in (100.0, 50.0):  # the longest counts
        clock.now += seconds
        cadence.end_step()
        cadence.end_save(10.0)
    assert cadence.time_is_over() is None  # 150 s are left, and 100 + 10 + 20 are needed
    clock.now += 30.0
    assert cadence.time_is_over() == (
        "checkpoint.end_time is in 120 s, and another step needs 130 s (the longest step 100 s, the longest save 10 s, "
        "checkpoint.end_margin_s 20 s)"
    )
    assert cadence.save_due(10)  # a run with an end saves at its end
    assert not cadence.save_due(9)


def test_the_end_of_a_batch_job() -> None:
    config = CheckpointConfig(end_time="slurm")
    assert config.ends_at({"SLURM_JOB_END_TIME": "1800000000"}) == NOON
    for environment, found in (({}, "is not set"), ({"SLURM_JOB_END_TIME": "soon"}, "is 'soon'")):
        with pytest.raises(ConfigError, match=rf"SLURM_JOB_END_TIME, .*, {found}; start the run in a Slurm job, or"):
            config.ends_at(environment)
    assert CheckpointConfig().ends_at({}) is None


def test_a_stop_is_heard_between_the_first_step_and_the_end() -> None:
    stop = StopRequest()
    assert not stop.ask("SIGUSR1", to_save=True)  # there is no step to stop after
    assert stop.reason is None
    stop.listen(saves=False)
    assert not stop.ask("SIGTERM", to_save=False)
    assert stop.reason is None
    assert stop.ask("SIGUSR1", to_save=True)
    assert stop.ask("end", to_save=True)
    assert stop.reason == "SIGUSR1"
    saving = StopRequest()
    saving.listen(saves=True)
    assert saving.ask("SIGTERM", to_save=False)
    assert saving.reason == "SIGTERM"
