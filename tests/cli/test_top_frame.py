"""What `megarl top` makes of what it read: time left, phases, and what looks stuck."""

import pytest

from megarl.cli.top_frame import RunFrame, Shown, count_standings, mark_processes, seconds_by_phase, time_left
from megarl.telemetry.heartbeat import LOST, Heartbeat, ProcessBeat
from megarl.telemetry.names import DESCRIPTIONS
from tests.cli.top_frames import make_beat


@pytest.mark.parametrize(
    ("step", "steps", "step_s", "since_s", "standing", "left_s"),
    [
        (10, 12, 60.0, 0.0, "running", 120.0),
        (10, 12, 60.0, 20.0, "running", 100.0),
        (10, 12, 60.0, 500.0, "running", 60.0),  # the step under way lasts longer than usual
        (12, 12, 60.0, 0.0, "running", None),
        (10, 12, 60.0, 0.0, "killed", None),
        (10, None, 60.0, 0.0, "running", None),
        (0, 12, None, 0.0, "running", None),
    ],
)
def test_time_left(
    step: int, steps: int | None, step_s: float | None, since_s: float, standing: Shown, left_s: float | None
) -> None:
    assert time_left(step=step, steps=steps, step_s=step_s, since_s=since_s, standing=standing) == left_s


def test_phases_are_in_the_order_of_the_step() -> None:
    seconds = {
        "publish": 1.0, "publish_wire": 0.7, "update": 4.0, "old_logp": 1.5, "generate": 6.0, "restart": 0.3,
        "write": 2.0, "step": 13.0, "eval": 5.0, "checkpoint": 0.25, "reset_reference": 0.0, "write_wait": 0.25,
    }  # fmt: skip
    assert seconds_by_phase({f"timing_s/{name}": value for name, value in seconds.items()}) == (
        ("generate", 6.0),
        ("old_logp", 1.5),
        ("update", 4.0),
        ("publish", 1.0),
        ("write_wait", 0.25),
        ("other", 0.25),
        ("eval", 5.0),
        ("checkpoint", 0.25),
    )
    assert seconds_by_phase({}) == ()


def test_every_time_that_is_logged_is_thought_of() -> None:
    names = {name: 1.0 for name in DESCRIPTIONS if name.startswith("timing_s/")}
    shown = dict(seconds_by_phase(names | {"timing_s/step": 100.0}))
    within = {name: value for name, value in shown.items() if name not in ("eval", "checkpoint")}
    assert sum(within.values()) == 100.0
    assert set(shown) == {
        "generate", "reward", "sleep", "old_logp", "update", "reset_reference", "publish", "wake", "write_wait",
        "other", "eval", "checkpoint",
    }  # fmt: skip


def marks(*beats: ProcessBeat, age_s: float = 1.0, longest_step_s: float | None = 10.0, **states: str) -> list[str]:
    heartbeat = Heartbeat(written_s=0.0, step=3, steps=9, processes=beats)
    by_place = {("n1", int(pid.removeprefix("pid"))): state for pid, state in states.items()}
    found = mark_processes(heartbeat, age_s=age_s, longest_step_s=longest_step_s, states=by_place)
    return [process.mark for process in found]


def test_what_looks_stuck_is_marked() -> None:
    driver = make_beat("controller", phase="update", silent_s=0.0)
    assert marks(driver, make_beat(), make_beat("rollout")) == ["", "", ""]
    assert marks(driver, make_beat(phase=LOST), make_beat(rank=1)) == ["", "lost", ""]
    assert marks(driver, make_beat(silent_s=41.0)) == ["", "no answer for 41 s"]
    assert marks(driver, make_beat(rank=7), pid107="stopped (by SIGSTOP)") == ["", "stopped (by SIGSTOP)"]
    assert marks(driver, make_beat(), age_s=25.0) == ["no heartbeat for 25 s", ""]


def test_what_takes_much_longer_than_steps_do_is_marked() -> None:
    driver = make_beat("controller", phase="update")
    slow = make_beat(phase="make an update", for_s=59.5)
    assert marks(driver, slow) == ["", "longer than 5 of its last steps"]
    assert marks(driver, slow, age_s=0.25) == ["", ""]
    assert marks(driver, slow, longest_step_s=20.0) == ["", ""]
    assert marks(driver, slow, longest_step_s=None) == ["", ""]  # nobody knows yet how long a step takes
    assert marks(driver, make_beat(for_s=4000.0)) == ["", ""]  # it is idle


def test_a_process_that_has_not_answered_yet_starts() -> None:
    assert marks(make_beat("controller"), make_beat(pid=None, silent_s=200.0), longest_step_s=None) == ["", ""]


def test_counts_begin_with_what_needs_looking_at() -> None:
    standings: tuple[Shown, ...] = ("finished", "waiting", "running", "failed", "running")
    runs = [RunFrame(label="", standing=standing) for standing in standings]
    assert count_standings(runs) == "2 running, 1 failed, 1 waiting, 1 finished"
