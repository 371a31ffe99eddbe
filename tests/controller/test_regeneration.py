"""Responses of engines that are lost are sampled again: none lost, none told twice."""

import asyncio
from collections.abc import Sequence

import pytest

from megarl.controller.parts import Parts
from megarl.controller.protocols import Arrived
from megarl.controller.regeneration import generate
from megarl.records import Rollout, SampleRequest
from megarl.rollout.failures import EngineLost
from megarl.telemetry.metrics import to_values
from tests.controller.fakes import Recorder, make_config, make_parts, run

REQUESTS = [SampleRequest(prompt=(index,), seed=100 + index) for index in range(8)]


class Losing(Recorder):
    """Of each call it answers only the positions in the script, in that order, and then an engine is lost; once the
    script is at its end it answers all. A response is the request's seed, under `drift` another one every time."""

    def __init__(self, *script: Sequence[int], drift: int = 0) -> None:
        super().__init__()
        self._script, self._drift, self._rounds = list(script), drift, 0
        self.asked: list[list[SampleRequest]] = []

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        self.calls.append("generate")
        self.asked.append(list(requests))
        answers = [self.answer(position, request) for position, request in enumerate(requests)]
        self._rounds += 1
        for position in self._script[0] if self._script else range(len(requests)):
            arrived([position], [answers[position]])
        if self._script:
            self._script.pop(0)
            raise EngineLost("rollout rank 1 died: gone")
        return answers

    def answer(self, position: int, request: SampleRequest) -> Rollout:
        tokens = (request.seed, self._drift * self._rounds)
        return Rollout(
            prompt=request.prompt, response=tokens, behavior_logp=(-1.0, -2.0), stop_reason="stop", policy_version=5
        )

    async def restore(self) -> int:
        await super().restore()
        return 1


def sample(recorder: Recorder, *, rounds: int = 3) -> tuple[list[Rollout], list[int], Parts]:
    """The rollouts, which requests were told of in order, and the parts."""
    parts, told = make_parts(make_config(), recorder), list[int]()

    def arrived(indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
        assert [int(rollout.response[0]) - 100 for rollout in rollouts] == list(indexes)
        told.extend(indexes)

    return asyncio.run(generate(REQUESTS, arrived, parts, rounds=rounds)), told, parts


def seeds(requests: Sequence[SampleRequest]) -> list[int]:
    return [request.seed - 100 for request in requests]


def test_without_a_loss_each_is_asked_for_once() -> None:
    recorder = Losing()
    rollouts, told, parts = sample(recorder)
    assert recorder.calls == ["generate"]
    assert [int(rollout.response[0]) for rollout in rollouts] == [request.seed for request in REQUESTS]
    assert told == list(range(8))
    assert parts.engine_losses.collect() == {}
    assert recorder.warnings == recorder.notes == []


def test_what_has_not_come_is_asked_for_again_with_its_seed_once_all_have_the_weights() -> None:
    recorder = Losing([7, 0, 2, 5, 1])
    recorder.policy_version = 5
    rollouts, told, parts = sample(recorder)
    assert recorder.calls == ["generate", "restore", "connect", "receive 5", "publish 5", "adopt 5", "generate"]
    # The missing ones in their order, and the last four that came, to be compared.
    assert [seeds(requests) for requests in recorder.asked] == [list(range(8)), [3, 4, 6, 0, 2, 5, 1]]
    assert told == [7, 0, 2, 5, 1, 3, 4, 6]
    assert [int(rollout.response[0]) for rollout in rollouts] == [request.seed for request in REQUESTS]
    assert to_values(parts.engine_losses.collect()) == {
        "rollout/restarts": 1,
        "rollout/regenerated": 3,
        "rollout/regenerated_compared": 4,
        "rollout/regenerated_differences": 0,
    }
    assert parts.engine_losses.collect() == {}
    assert recorder.warnings == ["3 of 8 responses are sampled again: rollout rank 1 died: gone"]
    assert recorder.notes == ["4 responses that had come were sampled once more: 0 differ"]


def test_the_first_answer_counts_and_other_ones_are_told() -> None:
    recorder = Losing([0, 1], drift=1)
    rollouts, told, parts = sample(recorder)
    assert [int(rollout.response[1]) for rollout in rollouts] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert told == list(range(8))
    values = to_values(parts.engine_losses.collect())
    assert (values["rollout/regenerated_compared"], values["rollout/regenerated_differences"]) == (2, 2)
    assert recorder.notes == [
        "2 responses that had come were sampled once more: 2 differ (an engine's tokens depend on what it samples "
        "beside them)"
    ]


def test_engines_may_be_lost_again() -> None:
    """Also before anything has come, and with only compared ones come meanwhile."""
    recorder = Losing([], [0, 1, 2, 3, 4, 5], [2])
    rollouts, told, parts = sample(recorder)
    assert [seeds(requests) for requests in recorder.asked] == [
        list(range(8)),
        list(range(8)),
        [6, 7, 2, 3, 4, 5],
        [6, 7, 2, 3, 4, 5],
    ]
    assert told == list(range(8))
    assert len(rollouts) == 8
    assert to_values(parts.engine_losses.collect()) == {
        "rollout/restarts": 3,
        "rollout/regenerated": 8 + 2 + 2,
        "rollout/regenerated_compared": 1 + 4,
        "rollout/regenerated_differences": 0,
    }


def test_an_engine_that_is_lost_after_its_last_answer_owes_none() -> None:
    """It is there again for what comes next; also where none may be sampled again any more."""
    recorder = Losing([*range(8)])
    rollouts, told, parts = sample(recorder, rounds=0)
    assert recorder.calls == ["generate", "restore", "connect", "receive 0", "publish 0", "adopt 0"]
    assert told == list(range(8))
    assert len(rollouts) == 8
    assert to_values(parts.engine_losses.collect())["rollout/regenerated"] == 0


def test_the_rounds_are_bounded() -> None:
    recorder = Losing([0], [], [])
    with pytest.raises(
        EngineLost, match=r"(?s)^rollout rank 1 died: gone.7 of 8 .* in 3 rounds .*\(rollout.restarts\)$"
    ):
        sample(recorder, rounds=2)
    assert recorder.calls.count("generate") == 3
    assert recorder.calls[-1] == "generate"


def test_a_step_trains_on_every_response_and_logs_what_the_loss_cost() -> None:

    class OfTheLoop(Losing):
        answer = Recorder.answer

    recorder = OfTheLoop([1])
    run(make_config(), recorder)
    first, second = recorder.records
    assert [len(record.rollouts) for record in (first, second)] == [4, 4]
    assert to_values(first.metrics)["rollout/regenerated"] == 3
    assert "rollout/restarts" not in second.metrics
    assert sorted((item.prompt_index, item.sample_index) for item in recorder.items[:4]) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
