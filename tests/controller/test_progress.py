"""A run that stopped in the middle of a step and went on from its progress is the run that did not stop."""

import json
import math
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megarl.config.auxiliary import ControllersConfig
from megarl.config.run import RunConfig
from megarl.controller.progress import RunProgress
from megarl.objective.loop_numbers import LoopChoice
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard
from megarl.records import Rollout, SampleRequest, TokenScores, TokenTrace
from megarl.rewards.pool import RewardItem
from megarl.telemetry.metrics import Mean, Metrics, to_values
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics
from tests.controller.fakes import PROMPTS, Recorder, make_config, make_parts, run
from tests.controller.test_reporting import open_reporter

STEPS = 6
OBJECTIVES: dict[str, dict[str, Any]] = {
    # Each remembers something else from one step to the next.
    "histories": {
        "advantage": {"method": "smoothed"},
        "sampler": {"kind": "dynamic", "max_generations": 4, "when_exhausted": "fill"},
        "shaping": {"perplexity": {}},
    },
    "controllers": {
        "clip": {"kind": "flexec", "schedule": "od"},
        "auxiliary": {"entropy": {}, "kl": {}},
        "controllers": {"aer": {}, "reference_reset": {"kl_above": 0.5}},
    },
    "targets": {
        "auxiliary": {"entropy": {}, "kl": {}},
        "weights": {"positive_scale": {}},
        "controllers": {
            "entropy_coefficient": {"target": 0.6, "step": 1e-3},
            "positive_scale": {"target": 0.6},
            "reference_reset": {"every_steps": 2},
        },
    },
    "averages": {
        "advantage": {"method": "focal"},
        "shaping": {"group_entropy": {}},
        "weights": {"negative_scale": {}, "stare": {}},
        "controllers": {"negative_scale": {"target_ratio": 1.5, "smallest": 0.01}, "stare": {"target": 0.6}},
    },
    "loop": {"clip": {"kind": "closed_loop", "loop": {"at": [0.0, 0.5, 1.0], "entropy": [1.0, 1.3, 0.7]}}},
}


class StoppedError(RuntimeError):
    """What ends a run in the middle."""


class Living(Recorder):
    """Policy and engines whose answers follow from their weights, which are the number of updates made.

    `updates` is what a policy rank would load; the engines begin with the weights of the checkpoint, 0 updates.
    """

    def __init__(self, *, updates: int = 0, stop_in: int | None = None) -> None:
        """stop_in: the step in whose last update the run ends."""
        super().__init__(verify=self.judge)
        self.updates, self._stop_in = updates, stop_in
        self.engines = self.published = 0
        self.requests_at = {0: 0}
        self._entropy = self.measure(0.4)

    def measure(self, shift: float) -> float:
        """A number within 0.2 and 1 that another count of updates makes another."""
        return 0.6 + 0.4 * math.sin(2.0 * self.updates + shift)

    def judge(self, item: RewardItem) -> float:
        """Right or wrong by the response's length: a group may be of one kind."""
        return float((item.response_tokens + item.prompt.index) % 3 == 0)

    def answer(self, position: int, request: SampleRequest) -> Rollout:
        length = 1 + (request.seed + self.engines) % 4
        tokens = [7 + (request.seed >> place) % 2 for place in range(length)]
        return Rollout(
            prompt=request.prompt,
            response=tokens,
            behavior_logp=[6.0 - token for token in tokens],
            stop_reason="stop",
            policy_version=self.engines,
        )

    def _token_scores(self, shards: Sequence[BatchShard]) -> list[TokenScores]:
        self._entropy = self.measure(0.4)
        return super()._token_scores(shards)

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        if (controls.step, index) == (self._stop_in, 1):
            raise StoppedError
        self.kl = self.measure(1.0)
        self.updates += 1
        result, _ = await super().train_mini_batch(index, controls, traced=traced)
        return replace(result, loop=self.choose(controls)), []

    def choose(self, controls: Controls) -> LoopChoice | None:
        """What a closed loop is told of an update: from where its knob was before, and from the weights."""
        if controls.loop is None:
            return None
        knob = (controls.loop.knob + self.measure(3.0)) % 1.0
        wanted = controls.loop.target - controls.loop.entropy + controls.loop.offset
        predicted = wanted + 0.3 * (knob - 0.5)  # more than was wanted, or less
        return LoopChoice(knob=knob, wanted=wanted, predicted=predicted, size=1.0, entropy=controls.loop.entropy)

    async def publish_weights(self, version: int) -> Metrics:
        self.published = self.updates
        return await super().publish_weights(version) | {"publish/changed_share": Mean(self.measure(2.0), 1.0)}

    async def adopt_weights(self, version: int) -> Metrics:
        self.engines = self.published
        return await super().adopt_weights(version)

    def commit(self, progress: RunProgress) -> None:
        self.requests_at[progress.step] = len(self.requests)
        super().commit(progress)

    def pictures(self) -> list[dict[str, Any]]:
        """What each step was, without its times."""
        return [
            {
                "step": record.step,
                "policy_version": record.policy_version,
                "items": [(item.prompt.index, item.sample_index, item.response) for item in record.items],
                "rewards": [score.reward for score in record.scores],
                "samples": [(sample.advantage, sample.correct, sample.entropy_scale) for sample in record.samples],
                "controls": [controls for controls in self.controls if controls.step == record.step],
                "metrics": without_times(to_values(record.metrics)),
            }
            for record in self.records
        ]

    def asked(self, after: int) -> list[tuple[tuple[int, ...], int]]:
        """(prompt, seed) of every request after a step, also for groups that were dropped."""
        return [(tuple(request.prompt), request.seed) for request in self.requests[self.requests_at[after] :]]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(("time", "timing_s/", "perf/"))}


def configure(name: str) -> RunConfig:
    return make_config(OBJECTIVES[name], steps=STEPS)


def as_read_back(progress: RunProgress) -> RunProgress:
    return RunProgress.from_state(json.loads(json.dumps(progress.state_dict(), allow_nan=False)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_stopped_run_goes_on_exactly(objective: str, stop: int) -> None:
    config = configure(objective)
    straight = Living()
    run(config, straight)
    stopped = Living(stop_in=stop + 1)
    with pytest.raises(StoppedError):
        run(config, stopped)
    assert [progress.step for progress in stopped.reached] == list(range(1, stop + 1))
    # The step that was cut off has drawn, scored and begun; none of it is in what was kept.
    assert len(stopped.requests) > stopped.requests_at[stop]
    second = Living(updates=2 * stop)
    run(config, second, progress=as_read_back(stopped.reached[-1]))
    second.requests_at[stop] = 0
    assert second.asked(stop) == straight.asked(stop)
    assert stopped.pictures() + second.pictures() == straight.pictures()
    assert second.calls.count("reset_reference") == straight.calls.count("reset_reference") - stopped.calls.count(
        "reset_reference"
    )
    expected = straight.reached[-1].state_dict()
    expected["owners"]["reporter"] = {"reported": STEPS - stop}
    assert second.reached[-1].state_dict() == expected


def test_the_objectives_of_this_file_remember() -> None:
    """Each of them would go another way from the state of another step."""
    for objective in OBJECTIVES:
        straight = Living()
        run(configure(objective), straight)
        states = [progress.owners for progress in straight.reached]
        moving = "history" if objective == "histories" else "controllers"
        assert len({json.dumps(state[moving]) for state in states}) == STEPS
    run(configure("histories"), histories := Living())
    generations = [picture["metrics"]["sampler/generations"] for picture in histories.pictures()]
    assert len(set(generations)) > 1
    assert "control/flexec_raising" in to_values(straight_of("controllers").records[-1].metrics)


def test_an_update_begins_where_the_one_before_left_the_knob() -> None:
    recorder = straight_of("loop")
    loops = [controls.loop for controls in recorder.controls]
    assert len(loops) == 2 * STEPS
    assert len({loop.knob for loop in loops if loop}) == 2 * STEPS
    last: LoopChoice | None = None
    again = Living()
    for controls in recorder.controls:
        assert controls.loop is not None
        assert last is None or controls.loop.knob == last.knob
        again.updates += 1
        last = again.choose(controls)


def test_every_controller_is_on_in_one_of_them() -> None:
    """One that is new belongs into `OBJECTIVES`, or nothing shows that its state is kept."""
    on = {name for objective in OBJECTIVES for name in configure(objective).objective.controllers.on}
    assert on == set(ControllersConfig.model_fields)


def numbers_in(state: Any, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of whatever in a state has no parts."""
    match state:
        case dict():
            for key, value in state.items():
                yield from numbers_in(value, *path, key)
        case list():
            for place, value in enumerate(state):
                yield from numbers_in(value, *path, place)
        case _:
            yield path, state


def changed(progress: RunProgress, path: tuple[str | int, ...], value: Any) -> RunProgress:
    """The same with another value there."""
    other = {str: "other", bool: not value, int: 1, float: 0.25}[type(value)]
    owners = json.loads(json.dumps(progress.owners))
    at = owners
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = other if type(value) in (str, bool) else value + other
    return replace(progress, owners=owners)


@pytest.mark.parametrize(
    ("objective", "idle"),
    [
        ("histories", {"raising", "reference_resets"}),
        ("controllers", set()),
        ("targets", {"raising"}),
        ("averages", {"raising", "reference_resets"}),
        ("loop", {"raising", "reference_resets"}),
    ],
)
def test_no_number_that_is_kept_could_be_another(objective: str, idle: set[str]) -> None:
    """Each is refused, or leads the run another way from one step at least: none is kept in vain, or kept and not
    given back. idle: what no part of this objective reads."""
    # Groups of four, whose means are not all the same.
    config = make_config(OBJECTIVES[objective], steps=STEPS, samples_per_prompt=4, mini_batch_responses=4)
    run(config, straight := Living())
    kept, noticed = set(), set()
    for stop in (1, 2, 4):
        progress = straight.reached[stop - 1]
        for path, value in numbers_in({name: state for name, state in progress.owners.items() if name != "reporter"}):
            # path[1] is the problem, or the loop in which the number is.
            name = str(path[2] if path[0] == "history" or path[1] == "loop" else path[1])
            kept.add(name)
            if name in noticed:
                continue
            second = Living(updates=2 * stop)
            try:
                run(config, second, progress=changed(progress, path, value))
            except ValueError:
                noticed.add(name)
            else:
                if second.pictures() != straight.pictures()[stop:]:
                    noticed.add(name)
    assert kept - noticed == idle
    assert len(kept) == {"histories": 13, "averages": 12, "loop": 14}.get(objective, 10)


def straight_of(objective: str) -> Living:
    run(configure(objective), living := Living())
    return living


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_driver_moves_no_generator(objective: str) -> None:
    """So there is none to be saved with a run."""
    before = random.getstate(), pickle.dumps(np.random.get_state())
    run(configure(objective), Living())
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before


def test_the_engines_get_the_weights_before_anything_is_sampled() -> None:
    config = make_config(steps=3)
    run(config, first := Living())
    run(config, second := Living(updates=4), progress=first.reached[1])
    assert second.calls[:6] == [
        *("reporter of 2", "start up: weights of step 2"),
        *("receive 2", "publish 2", "adopt 2", "generate"),
    ]
    assert second.calls[-5:] == ["receive 3", "publish 3", "adopt 3", "export hf-3", "commit 3"]


def test_a_version_is_counted_on_from_where_it_was() -> None:
    """It is the number of publications of finished steps, whatever the step's own number."""
    config = make_config(steps=3)
    run(config, first := Living())
    progress = RunProgress(step=2, policy_version=7, owners=first.reached[1].owners)
    run(config, second := Living(updates=4), progress=progress)
    assert [call for call in second.calls if call.startswith("publish")] == ["publish 7", "publish 8"]
    assert [(record.step, record.policy_version) for record in second.records] == [(3, 8)]
    assert second.reached[-1].policy_version == 8


def test_a_finished_run_has_nothing_left_to_do() -> None:
    config = make_config(steps=2)
    run(config, first := Living())
    run(config, second := Living(updates=4), progress=first.reached[-1])
    assert second.calls == ["reporter of 2"]


def test_a_run_directory_goes_on(tmp_path: Path) -> None:
    """With the real reporter: the rows and the state of both runs are one run's."""
    config = configure("histories")
    directories = []
    for folder, livings in {
        "straight": [Living()],
        "stopped": [Living(stop_in=4), Living(updates=6)],
    }.items():
        logging = config.logging.model_copy(update={"directory": str(tmp_path / folder), "rollouts_every": 1})
        own = config.model_copy(update={"logging": logging})
        directory = RunDirectory.create(own, source=None, verb="train")
        directories.append(directory)
        for living in livings:
            progress = None
            if living is not livings[0]:
                assert directory.read_state().step == 3
                progress = RunProgress.from_state(directory.read_state().progress)
            with open_reporter(own, directory) as reporter:
                try:
                    run(own, living, progress=progress, reporter=reporter)
                except StoppedError:
                    assert living is not livings[-1]
    straight, stopped = directories
    rows, expected = (
        [without_times(row) for row in read_metrics(directory.metrics_path)] for directory in (stopped, straight)
    )
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == expected
    assert stopped.read_state() == straight.read_state()
    assert {path.name for path in stopped.rollouts.iterdir()} == {path.name for path in straight.rollouts.iterdir()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, r"format 2, this version of megarl reads 1; go on with the version that wrote it"),
        ({"step": -1}, r"step -1, expected a number from 0"),
        ({"policy_version": "3"}, r"policy_version '3', expected a number"),
        ({"owners": []}, r"owners \[\], expected a state for each"),
        ({"weights": 1}, r"keys \['format', .*'weights'\], expected \['format', 'owners', 'policy_version', 'step'\]"),
    ],
)
def test_a_damaged_progress_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RunProgress.from_state(RunProgress().state_dict() | change)
    with pytest.raises(ValueError, match=r"progress state is None, expected keys"):
        RunProgress.from_state(None)  # type: ignore[arg-type]


def test_a_progress_that_does_not_fit_the_run_stops_it_before_anything() -> None:
    config = make_config(steps=2)
    run(config, first := Living())
    owners = first.reached[0].owners
    others = {name: state for name, state in owners.items() if name != "history"}
    for bad, expected in (
        ({"owners": others}, r"run state has keys \['controllers', 'reporter', 'sampler', 'scorer'\], expected"),
        ({"owners": {**owners, "critic": {}}}, r"run state has keys .*'critic'.*, expected \['controllers', 'history'"),
        ({"owners": {**owners, "history": {"0": [1, 0.5]}}}, r"history state of problem '0' is \[1, 0\.5\], expected"),
        ({"owners": {**owners, "sampler": {"num_drawn": 2}}}, r"sampler state has keys \['num_drawn'\], expected"),
        ({"step": 3}, r"finished step 3, this one ends after step 2"),
    ):
        second = Living()
        values = {"step": 1, "policy_version": 1, "owners": owners} | bad
        with pytest.raises(ValueError, match=expected):
            run(config, second, progress=RunProgress(**values))
        assert [call for call in second.calls if not call.startswith("reporter")] == []


def test_what_was_collected_stays_as_it_was() -> None:
    config = configure("histories")
    parts = make_parts(config, Living())
    before = RunProgress.collect(parts.owners, step=0, policy_version=0)
    kept = json.dumps(before.state_dict())
    parts.sampler.draw(len(PROMPTS) + 1)
    parts.history.visit("0", mean=0.5, std=0.5)
    parts.controllers.begin_step(1, 0.5)
    assert json.dumps(before.state_dict()) == kept
    again = RunProgress.collect(parts.owners, step=1, policy_version=1)
    before.restore(parts.owners, steps=STEPS)
    assert RunProgress.collect(parts.owners, step=0, policy_version=0) == before
    assert again.owners["sampler"] != before.owners["sampler"]
