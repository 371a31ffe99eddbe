"""Responses whose engine was lost are sampled again, once all engines run and have the policy's weights.

A response is a function of prompt, seed and weights where an engine computes it exactly so: then a run that loses
engines samples what one that loses none does. Where it is not, it depends on those beside it too: a few responses that
had come are sampled once more with the missing ones, and compared, to say which it is.
"""

from collections.abc import Sequence

import numpy as np

from megarl.controller.parts import PublishingParts
from megarl.controller.protocols import Arrived
from megarl.controller.publication import publish_weights
from megarl.records import Rollout, SampleRequest
from megarl.rollout.failures import EngineLost

_MOST_COMPARED = 4
"""Each costs as much as a missing one. Those that came last: the longest, as a rule, and with most to differ in."""


async def generate(
    requests: Sequence[SampleRequest], arrived: Arrived, parts: PublishingParts, *, rounds: int
) -> list[Rollout]:
    """`RolloutPool.generate`, where engines may be lost; `arrived` is told of each response once.

    rounds: so often those that have not come are sampled again. EngineLost when there still are some then.
    """
    answers = _Answers(requests, arrived)
    asked = list(range(len(requests)))
    for left in range(rounds, -1, -1):
        try:
            await parts.pool.generate([requests[index] for index in asked], answers.teller(asked))
            break
        except EngineLost as lost:
            missing, total = answers.missing, len(requests)
            if missing and not left:
                text = f"{lost}\n{len(missing)} of {total} responses did not come in {rounds + 1} rounds of sampling"
                raise EngineLost(f"{text} (rollout.restarts)") from lost
            parts.reporter.warn(f"{len(missing)} of {total} responses are sampled again: {lost}")
            parts.engine_losses.regenerated += len(missing)
            await publish_weights(parts.pool.policy_version, parts, anew=True)
            if not missing:
                break  # it was lost after its last answer
            asked = missing + answers.last_come(_MOST_COMPARED)
    if answers.num_compared:
        parts.engine_losses.compared += answers.num_compared
        parts.engine_losses.different += answers.num_different
        parts.reporter.note(answers.describe_comparison())
    return answers.in_order()


class _Answers:
    """The first answer to each request, and whether later ones were the same."""

    def __init__(self, requests: Sequence[SampleRequest], arrived: Arrived) -> None:
        self._total, self._arrived = len(requests), arrived
        self._come: dict[int, Rollout] = {}
        self.num_compared = self.num_different = 0

    def teller(self, asked: Sequence[int]) -> Arrived:
        """For a call with the requests `asked`: tells on what comes for the first time, under its index."""

        def tell(positions: Sequence[int], rollouts: Sequence[Rollout]) -> None:
            new: dict[int, Rollout] = {}
            for position, rollout in zip(positions, rollouts, strict=True):
                index = asked[position]
                if index in self._come:
                    self._compare(self._come[index], rollout)
                else:
                    new[index] = self._come[index] = rollout
            if new:
                self._arrived(list(new), list(new.values()))

        return tell

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self._total) if index not in self._come]

    def last_come(self, count: int) -> list[int]:
        return list(self._come)[-count:]

    def in_order(self) -> list[Rollout]:
        return [self._come[index] for index in range(self._total)]

    def describe_comparison(self) -> str:
        text = f"{self.num_compared} responses that had come were sampled once more: {self.num_different} differ"
        return text + (" (an engine's tokens depend on what it samples beside them)" if self.num_different else "")

    def _compare(self, first: Rollout, again: Rollout) -> None:
        self.num_compared += 1
        self.num_different += not np.array_equal(first.response, again.response)
