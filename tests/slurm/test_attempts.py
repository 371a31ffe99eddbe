"""What follows an attempt: by what happened, to the second and the word."""

from typing import Any

import pytest

from megarl.slurm.attempts import Attempt, decide, find_lost


def attempt(ending: str | None, *, step: int = 0, from_step: int = 0, text: str = "", **facts: Any) -> Attempt:
    made: dict[str, Any] = {"number": 0, "job": "7", "nodes": "n[1-2]", "began_s": 0.0, "ending": ending}
    return Attempt(**made, step=step, from_step=from_step, text=text, **facts)


def test_a_finished_run_is_done_and_a_stopped_or_refused_one_stays() -> None:
    assert decide([attempt("finished")], restarts=5).action == "done"
    assert decide([attempt("stopped")], restarts=5).action == "stop"
    assert decide([attempt("refused")], restarts=5).action == "stop"


def test_the_time_limit_is_followed_at_once_as_often_as_steps_are_made() -> None:
    row = [attempt("time limit", from_step=step, step=step + 3) for step in range(0, 300, 3)]
    verdict = decide(row, restarts=0)
    assert (verdict.action, verdict.pause_s) == ("requeue", 15)


def test_a_time_limit_too_short_for_a_step_is_found_at_the_second_time() -> None:
    short = attempt("time limit", from_step=4, step=4)
    assert decide([short], restarts=5).action == "requeue"
    verdict = decide([short, short], restarts=5)
    assert verdict.action == "stop"
    assert "without finishing a step; ask for a longer --time" in verdict.text
    further = attempt("time limit", from_step=3, step=4)
    assert decide([short, further], restarts=5).action == "requeue"


def test_crashes_are_followed_after_pauses_that_double_and_end() -> None:
    row: list[Attempt] = []
    pauses = []
    for number in range(6):
        row.append(attempt("crashed", step=number, text="a worker died"))
        verdict = decide(row, restarts=5)
        pauses.append(verdict.pause_s if verdict.action == "requeue" else verdict.action)
    assert pauses == [60, 120, 240, 480, 960, "stop"]
    assert decide([attempt("crashed", step=at) for at in range(9)], restarts=99).pause_s == 3600
    assert decide([attempt("crashed")], restarts=0).action == "stop"


def test_one_step_that_fails_twice_in_one_way_is_not_tried_again() -> None:
    first = attempt("crashed", step=7, text="policy rank 3 on n1 (process 4711) died: out of memory\ntraceback")
    again = attempt("crashed", step=7, text="policy rank 2 on n2 (process 99) died: out of memory\nanother")
    other = attempt("crashed", step=7, text="engine 0 hangs")
    later = attempt("crashed", step=8, text=first.text)
    assert decide([first, again], restarts=5).text.startswith("step 8 failed twice in the same way")
    assert decide([first, other], restarts=5).action == "requeue"
    assert decide([first, later], restarts=5).action == "requeue"
    # Attempts that were no crashes in between change nothing.
    assert (
        decide([first, attempt(None), attempt("time limit", from_step=1, step=2), again], restarts=5).action == "stop"
    )
    unfit = attempt("unfit", step=7, text=first.text, unfit=("n1",))
    assert decide([unfit, again], restarts=5).action == "requeue"


def test_unfit_nodes_are_avoided_from_then_on() -> None:
    one = attempt("unfit", text="n2: no GPU", unfit=("n2",))
    verdict = decide([one], restarts=5)
    assert (verdict.action, verdict.pause_s, verdict.avoid) == ("requeue", 60, ("n2",))
    assert "begins in 60 s, without n2 (crash 1 of at most 6)" in verdict.text
    two = attempt("unfit", text="n2: no GPU", unfit=("n1", "n2"))
    assert decide([one, two], restarts=5).avoid == ("n1", "n2")
    assert decide([one, attempt("time limit", step=1)], restarts=5).avoid == ("n2",)


def test_a_run_that_loses_its_nodes_at_one_step_ends_at_some_time() -> None:
    lost = [attempt(None, from_step=3)] * 5
    assert find_lost(lost[:4]) is None
    assert "the last 5 attempts went on after step 3 and were lost" in (find_lost(lost) or "")
    assert find_lost([*lost[:4], attempt(None, from_step=4)]) is None
    assert find_lost([*lost[:4], attempt("crashed", from_step=3)]) is None


def test_an_attempt_without_an_ending_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="attempt 0 has no ending"):
        decide([attempt(None)], restarts=5)
