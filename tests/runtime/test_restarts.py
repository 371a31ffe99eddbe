"""Which engine is started again, and which failure ends the run."""

import pytest

from megarl.runtime.failures import EngineBroken, WorkerDied, WorkerFailed
from megarl.runtime.restarts import Restarts

DIED = WorkerDied("rollout rank 1 died: gone\nEnd of rollout-1.log:\n  | last")


def refused(restarts: Restarts, engine: int, failure: WorkerFailed = DIED) -> WorkerFailed:
    with pytest.raises(WorkerFailed) as caught:
        restarts.spend(engine, failure)
    return caught.value


def test_each_engine_has_its_own_number() -> None:
    restarts = Restarts(2)
    told = []
    for engine in (0, 1, 0, 1):
        restarts.answered(engine)
        told.append(restarts.spend(engine, DIED))
    assert told == [f"{number} of 2, rollout.restarts" for number in (1, 1, 2, 2)]
    restarts.answered(0)
    text = str(refused(restarts, 0))
    assert text == f"{DIED}\nIt had been started again 2 times, as often as rollout.restarts allows"


def test_none_is_the_failure_itself() -> None:
    assert refused(Restarts(0), 1) is DIED


@pytest.mark.parametrize("answered_first", [True, False])
def test_an_engine_that_is_lost_twice_before_it_answers_is_not_tried_again(answered_first: bool) -> None:
    """Not for the life that answered before; the kind of the failure is kept."""
    restarts = Restarts(9)
    if answered_first:
        restarts.answered(1)
        restarts.spend(1, DIED)
    restarts.spend(1, DIED)
    restarts.spend(0, DIED)  # another's do not count
    broken = refused(restarts, 1, EngineBroken("rollout rank 1 raised EngineError: no"))
    assert isinstance(broken, EngineBroken)
    times = "2 times" if answered_first else "once"
    reason = f"started again {times}, and it failed twice in a row before it had answered anything"
    assert str(broken) == f"rollout rank 1 raised EngineError: no\nIt had been {reason}"


def test_an_answer_between_makes_the_row_begin_anew() -> None:
    restarts = Restarts(9)
    restarts.spend(1, DIED)
    restarts.answered(1)
    restarts.spend(1, DIED)
    restarts.spend(1, DIED)
    refused(restarts, 1)
