"""Dynamic sampling: what is refilled, kept and dropped, and that seeds do not depend on the rounds."""

import dataclasses

import pytest
from pydantic import ValidationError

from megarl.config.base import ConfigError
from megarl.controller.sampling import Group, SamplingExhaustedError, sample_requests
from megarl.records import Prompt, Rollout, SampleRequest, Score
from megarl.rewards.item import RewardItem
from megarl.telemetry.metrics import to_values
from tests.controller.fakes import PROMPTS, Recorder, make_config, run


def dynamic(**fields):
    return {"sampler": {"kind": "dynamic", **fields}}


def spread_in(*indexes: int):
    """A verdict under which only these prompts' groups have spread; the others are right throughout."""

    def verify(item: RewardItem) -> float:
        return float(item.sample_index) if item.prompt.index in indexes else 1.0

    return verify


def trained_prompts(recorder: Recorder) -> list[list[int]]:
    return [[item.prompt.index for item in record.items[::2]] for record in recorder.records]


def test_groups_without_spread_are_replaced() -> None:
    recorder = Recorder(verify=spread_in(1, 4, 5))
    run(make_config(dynamic(), steps=1), recorder)
    # Rounds of two prompts: (0, 1), (2, 3), (4, 5); the group of 5 is over and dropped.
    assert trained_prompts(recorder) == [[1, 4]]
    assert recorder.calls[:7] == ["generate", "reward"] * 3 + ["old_logp"]
    (record,) = recorder.records
    assert [tuple(sample.prompt) for sample in record.samples] == [(1, 2)] * 2 + [(4, 5)] * 2
    assert [sample.advantage for sample in record.samples] == [-0.5, 0.5, -0.5, 0.5]
    values = to_values(record.metrics)
    assert values["sampler/generations"] == 3
    assert values["sampler/generated_groups"] == 6
    assert values["sampler/kept_groups"] == 3
    # Three groups of mean 0.5 and three of mean 1; what is trained on has mean 0.5.
    assert values["sampler/reward_mean_all"] == 0.75


def test_a_full_first_round_ends_sampling_and_the_next_step_goes_on_in_the_data() -> None:
    recorder = Recorder()
    run(make_config(dynamic(prompts_per_generation=3)), recorder)
    assert trained_prompts(recorder) == [[0, 1], [3, 4]]
    assert recorder.calls.count("generate") == 2


@pytest.mark.parametrize("per_round", [1, 2, 3, 6])
def test_the_size_of_a_round_changes_no_response(per_round) -> None:
    """Seeds and random rewards are keyed by the prompt's position among all that the step drew."""
    recorder = Recorder(verify=spread_in(2, 5))
    run(make_config(dynamic(prompts_per_generation=per_round), steps=1), recorder)
    expected = sample_requests(PROMPTS, step=1, config=make_config())
    assert recorder.requests == expected
    assert len({request.seed for request in expected}) == len(expected)
    assert [(item.prompt_index, item.sample_index) for item in recorder.items] == [(i // 2, i % 2) for i in range(12)]
    assert trained_prompts(recorder) == [[2, 5]]


def test_the_first_round_has_the_seeds_of_a_run_without_dynamic_sampling() -> None:
    plain, refilled = Recorder(), Recorder(verify=spread_in(1, 2))
    run(make_config(steps=1), plain)
    run(make_config(dynamic(), steps=1), refilled)
    assert refilled.requests[:4] == plain.requests
    assert len({request.seed for request in refilled.requests}) == 8


def test_exhaustion_stops_the_run_with_the_counts() -> None:
    recorder = Recorder(verify=lambda item: spread_in(1)(item) if item.prompt.index else 0.0)
    with pytest.raises(SamplingExhaustedError) as error:
        run(make_config(dynamic(max_generations=2, prompts_per_generation=3), steps=1), recorder)
    text = str(error.value)
    assert "step 1: after 2 rounds of generation only 1 of the 2 groups" in text
    assert "of 6 groups generated, 4 are all correct, 1 are all wrong" in text
    assert "objective.sampler.max_generations" in text
    assert recorder.calls == ["generate", "reward"] * 2


WRONG = (0.01, 0.05, 0.01, 0.02)


def make_group(*scores: Score) -> Group:
    prompt = Prompt(index=0, text="", token_ids=(1,), answer="")
    return Group(position=0, prompt=prompt, items=(), rollouts=(), scores=scores)


def test_partial_credit_of_wrong_answers_is_no_spread() -> None:
    assert not make_group(*(Score(reward=x, verifier=x) for x in WRONG)).has_spread
    assert make_group(
        *(Score(reward=x, verifier=x) for x in WRONG), Score(reward=1, verifier=1, correct=True)
    ).has_spread
    # Draws know no right and wrong: their numbers decide.
    assert make_group(*(Score(reward=x, verifier=x, correct=None) for x in WRONG)).has_spread
    assert not make_group(*(Score(reward=0.5, verifier=0.5, correct=None) for _ in range(2))).has_spread


def test_wrong_answers_with_partial_credit_are_replaced_and_keep_it_in_their_reward() -> None:
    recorder = Recorder(verify=lambda item: item.prompt.index * 0.2 * (1 + 4 * item.sample_index))
    run(make_config(dynamic(), steps=1), recorder)
    # Prompts 0 to 5 score (0, 0), (0.2, 1), (0.4, 2), ...: the first is wrong throughout.
    (record,) = recorder.records
    assert trained_prompts(recorder) == [[1, 2]]
    assert [sample.correct for sample in record.samples] == [False, True] * 2
    assert [score.reward for score in record.scores] == pytest.approx([0.2, 1.0, 0.4, 2.0])


def test_perplexity_bonus_is_a_share_of_the_verdict_alone() -> None:
    """Neither the overlong penalty nor a wrong answer's partial credit moves it; a wrong answer's own loss does."""
    bonus = {"alpha": 100.0, "kappa": 4.0}  # the bonus is at its cap, |R| / 4

    def bonus_of(verdict: float, shift: float = 0.0) -> float:
        recorder = Recorder(verify=lambda _: verdict, shift=lambda _: shift)
        run(make_config({"shaping": {"perplexity": bonus}}, steps=1), recorder)
        return recorder.records[0].scores[0].bonus

    assert bonus_of(1.0) == bonus_of(1.0, shift=-0.5) == pytest.approx(0.25)
    assert bonus_of(0.05) == bonus_of(0.0) == 0.0
    assert bonus_of(-1.0) == pytest.approx(0.25)


def test_exhaustion_can_fill_the_step_instead() -> None:
    recorder = Recorder(verify=spread_in(4))
    run(make_config(dynamic(max_generations=3, when_exhausted="fill"), steps=1), recorder)
    # The first group that was dropped comes back, and the step is in the order drawn.
    assert trained_prompts(recorder) == [[0, 4]]
    assert [sample.advantage for sample in recorder.records[0].samples] == [0.0, 0.0, -0.5, 0.5]
    assert to_values(recorder.records[0].metrics)["sampler/kept_groups"] == 1


def test_the_verifier_decides_not_the_shaped_reward() -> None:
    """CDE's bonus makes the rewards of a group differ; its answers are still all right."""
    objective = dynamic(max_generations=1) | {"shaping": {"perplexity": {}}}

    class Uneven(Recorder):
        def answer(self, position, request):
            return dataclasses.replace(super().answer(position, request), behavior_logp=(-0.1 * position, -0.1))

    with pytest.raises(SamplingExhaustedError, match="only 0 of the 2 groups"):
        run(make_config(objective, steps=1), Uneven(verify=lambda item: 1.0))


def test_perplexity_bonus_reaches_reward_and_advantage() -> None:
    bonus = {"alpha": 0.1, "kappa": 3.0, "omega": 1.0, "decay_factor": 0.5, "decay_every_steps": 1}
    recorder = Recorder()
    run(make_config({"shaping": {"perplexity": bonus}}), recorder)
    first, second = recorder.records
    # B = 1.5; the reward 0 earns nothing, the reward 1 min(1/3, 0.15), halved in the second step.
    assert [score.bonus for score in first.scores] == pytest.approx([0.0, 0.15, 0.0, 0.15])
    assert [score.reward for score in second.scores] == pytest.approx([0.0, 1.075, 0.0, 1.075])
    assert [score.verifier for score in second.scores] == [0.0, 1.0, 0.0, 1.0]
    assert [sample.advantage for sample in first.samples] == pytest.approx([-0.575, 0.575] * 2)
    values = to_values(second.metrics)
    assert values["shaping/perplexity_bonus_mean"] == pytest.approx(0.0375)
    assert values["shaping/perplexity_omega"] == 0.5


def test_a_prompt_drawn_twice_in_a_step_is_sampled_anew() -> None:
    requests = sample_requests([PROMPTS[0], PROMPTS[0]], step=3, config=make_config())
    assert len({request.seed for request in requests}) == 4
    again = sample_requests([PROMPTS[0], PROMPTS[0]], step=3, config=make_config())
    assert [r.seed for r in requests] == [r.seed for r in again]


def test_items_say_what_was_cut_off() -> None:
    class Cutting(Recorder):
        def answer(self, position: int, request: SampleRequest) -> Rollout:
            return dataclasses.replace(
                super().answer(position, request), stop_reason="length" if position % 2 else "stop"
            )

    recorder = Cutting()
    run(make_config(steps=1), recorder)
    assert [(item.prompt_index, item.sample_index, item.truncated) for item in recorder.records[0].items] == [
        (0, 0, False),
        (0, 1, True),
        (1, 0, False),
        (1, 1, True),
    ]


def test_a_sampler_that_can_never_fill_a_step_is_refused() -> None:
    with pytest.raises(
        (ConfigError, ValidationError), match=r"1 x max_generations 1 is below train\.prompts_per_step 2"
    ):
        make_config(dynamic(prompts_per_generation=1, max_generations=1))
    with pytest.raises((ConfigError, ValidationError), match="none ever does"):
        make_config(dynamic() | {"advantage": {"method": "reinforce_pp"}}, samples_per_prompt=1)
