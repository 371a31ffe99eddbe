"""Whether a run goes on by itself after a failure, to the second and the word."""

from pathlib import Path
from typing import Any

import pytest

from megarl.telemetry.restarts import (
    Failure,
    Restart,
    decide_restart,
    fails_alike,
    pause_after,
    read_failures,
    write_failures,
)


def failure(step: int, text: str = "policy rank 1 died") -> Failure:
    return Failure(at_s=1.0, step=step, text=text, driver="host/boot/pid/1/2")


def decide(*failures: Failure, **facts: Any) -> Restart:
    usual: dict[str, Any] = {"restarts": 5, "first_pause_s": 60.0, "began": True, "from_step": 2, "exported": False}
    return decide_restart(failures, **(usual | facts))


def test_pauses_double_and_end() -> None:
    row = [failure(step) for step in range(6)]
    decided = [decide(*row[: count + 1]) for count in range(6)]
    assert [each.pause_s for each in decided] == [60, 120, 240, 480, 960, None]
    assert decided[1].text == "in 120 s the run goes on after step 2 (restart 2 of at most 5)"
    assert decided[5].text == "the run failed 6 times, of which cluster.restarts allows 5"
    assert [pause_after(count) for count in (1, 7, 10_000)] == [60, 3600, 3600]
    assert pause_after(9, first_s=0.0) == 0
    assert pause_after(3, first_s=7200.0) == 7200  # not shorter than what was asked for


def test_one_step_that_fails_twice_in_one_way_is_not_tried_again() -> None:
    first, again = failure(7, "policy rank 3 (process 4711) died"), failure(7, "policy rank 2 (process 99) died\nlog")
    assert decide(first, again).text == "step 8 failed twice in the same way; it would do so again"
    assert decide(first, again).pause_s is None
    assert decide(first, failure(7, "engine 0 hangs")).pause_s == 120
    assert decide(first, failure(8, first.text)).pause_s == 120
    assert decide(first, failure(8), again).pause_s == 240
    assert fails_alike(first, again)


def test_a_start_that_fails_is_its_configurations_fault_unless_it_has_worked_before() -> None:
    assert decide(failure(0), began=False).pause_s is None
    assert decide(failure(0, "engine 0 hangs"), failure(0), began=False).pause_s == 120


def test_without_a_checkpoint_it_starts_over_unless_that_takes_weights_away() -> None:
    assert decide(failure(1), from_step=None).text == (
        "in 60 s the run starts over: there is no complete checkpoint (restart 1 of at most 5)"
    )
    assert decide(failure(1), from_step=None, exported=True).pause_s is None
    assert decide(failure(1), exported=True).pause_s == 60


def test_failures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "restarts.json"
    assert read_failures(path) == []
    written = [failure(1), Failure(at_s=2.5, step=2, text="ä\nb", driver="x", goes_on_s=3.5, verdict="it goes on")]
    write_failures(path, written)
    assert read_failures(path) == written
    for text in ("[", "{}", '[{"step": 1}]', "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"restarts\.json is damaged: expected a list of failures, found"):
            read_failures(path)
