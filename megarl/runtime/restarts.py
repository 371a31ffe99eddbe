"""Whether an engine that was lost is started again. Needs no Ray."""

from collections import Counter

from megarl.runtime.failures import WorkerFailed

_MOST_FRUITLESS = 2


class Restarts:
    """Of each engine: how often it was started again, and whether that helps."""

    def __init__(self, allowed: int) -> None:
        """allowed: rollout.restarts, of each engine."""
        self._allowed = allowed
        self._made: Counter[int] = Counter()
        self._fruitless: Counter[int] = Counter()
        """Of an engine: lives in a row that ended before it had answered anything."""
        self._has_answered: set[int] = set()
        """Engines that have, since they were started last."""

    def answered(self, engine: int) -> None:
        """It has given a response."""
        self._has_answered.add(engine)

    def spend(self, engine: int, failure: WorkerFailed) -> str:
        """It failed, and is to be started again: which time that is, for a person. Raises `failure`, with what was
        tried where anything was, when it is not to be."""
        self._fruitless[engine] = 0 if engine in self._has_answered else self._fruitless[engine] + 1
        self._has_answered.discard(engine)
        made = self._made[engine]
        if made == self._allowed:
            raise _with_reason(failure, "as often as rollout.restarts allows", made)
        if made and self._fruitless[engine] >= _MOST_FRUITLESS:
            raise _with_reason(failure, "and it failed twice in a row before it had answered anything", made)
        self._made[engine] += 1
        return f"{made + 1} of {self._allowed}, rollout.restarts"


def _with_reason(failure: WorkerFailed, reason: str, made: int) -> WorkerFailed:
    if not made:
        return failure
    times = "once" if made == 1 else f"{made} times"
    return type(failure)(f"{failure}\nIt had been started again {times}, {reason}")
