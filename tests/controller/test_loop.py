"""The loop's order, its groups, controllers and refusals, with parts that only note what is asked of them."""

import math

import pytest

from megarl.controller.mismatch import LogpMismatchError, NonFiniteLogpError, compute_mean_entropy
from megarl.controller.reporting import rollout_columns
from megarl.records import TokenScores
from megarl.rewards.item import RewardItem
from megarl.telemetry.metrics import Metrics, to_values
from tests.controller.fakes import Forgetful, Recorder, make_config, run


def test_order_of_a_run() -> None:
    recorder = Recorder()
    run(make_config(), recorder)
    step = ["generate", "reward", "old_logp", "update 0", "update 1"]
    assert recorder.calls == [
        *step,
        *("receive 1", "publish 1", "adopt 1", "commit 1"),
        *step,
        *("receive 2", "publish 2", "adopt 2"),
        *("export hf-2", "commit 2"),
    ]


def test_engines_that_start_without_weights_are_sent_them_before_the_first_step() -> None:
    """As of version 0, in the place of those that they would have read."""
    config = make_config()
    rollout = config.rollout.model_copy(update={"vllm_overrides": {"load_format": "dummy"}})
    recorder, plain = Recorder(), Recorder()
    run(config.model_copy(update={"rollout": rollout}), recorder)
    run(config, plain)
    sent = ["start up: weights of step 0", "receive 0", "publish 0", "adopt 0"]
    assert recorder.calls == [*sent, *plain.calls]


def test_advantages_are_within_the_samples_of_a_prompt() -> None:
    recorder = Recorder()
    run(make_config(steps=1), recorder)
    (record,) = recorder.records
    # Rewards 0 and 1 for the two samples of each prompt: their mean is 0.5.
    assert [sample.advantage for sample in record.samples] == [-0.5, 0.5, -0.5, 0.5]
    assert [sample.correct for sample in record.samples] == [False, True, False, True]
    assert [item.prompt.index for item in record.items] == [0, 0, 1, 1]
    assert [scores.sample_id for scores in record.token_scores] == [0, 1, 2, 3]
    assert isinstance(record.items[0], RewardItem)


def test_token_whitening_sees_the_lengths_of_the_step() -> None:
    recorder = Recorder()
    run(make_config({"advantage": {"method": "reinforce_pp"}}, steps=1), recorder)
    assert [sample.advantage for sample in recorder.records[0].samples] == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_a_first_step_that_differs_is_refused_before_any_update() -> None:
    recorder = Recorder(offset=3.0)
    with pytest.raises(LogpMismatchError, match=r"1\.5 nats per token"):
        run(make_config(), recorder)
    assert "update 0" not in recorder.calls


def test_a_nan_is_refused_and_names_the_side() -> None:
    with pytest.raises(NonFiniteLogpError, match=r"the trainer's \(old_logp\) in samples"):
        run(make_config(), Recorder(offset=math.nan))
    with pytest.raises(NonFiniteLogpError, match=r"the trainer's entropies in samples \[0, 1, 2, 3\] of 4"):
        run(make_config(), Recorder(entropy=math.inf))


def test_a_publication_that_goes_wrong_is_refused_on_the_next_step() -> None:
    recorder = Forgetful()
    with pytest.raises(LogpMismatchError, match="suspect the publication"):
        run(make_config(), recorder)
    assert recorder.calls[-1] == "old_logp"


def test_every_update_of_a_step_gets_the_steps_numbers() -> None:
    class Cooling(Recorder):
        async def adopt_weights(self, version: int) -> Metrics:
            self._entropy /= 2
            return await super().adopt_weights(version)

    objective = {"auxiliary": {"entropy": {"coefficient": 0.0}}, "controllers": {"aer": {"target_ratio": 1, "rate": 1}}}
    recorder = Cooling(entropy=0.5)
    run(make_config(objective), recorder)
    # The target is the starting entropy 0.5; in the second step 0.25 is missing.
    assert [(c.step, c.entropy_coefficient) for c in recorder.controls] == [(1, 0.0), (1, 0.0), (2, 0.25), (2, 0.25)]
    values = to_values(recorder.records[1].metrics)
    assert (values["actor/old_entropy"], values["actor/entropy_over_start"]) == (0.25, 0.5)
    assert values["control/entropy_coefficient"] == 0.25


def test_mean_entropy_counts_tokens() -> None:
    scores = [
        TokenScores(sample_id=0, old_logp=(0.0,), old_entropy=(1.0,)),
        TokenScores(sample_id=1, old_logp=(0.0,) * 3, old_entropy=(2.0, 3.0, 4.0)),
        TokenScores(sample_id=2, old_logp=(), old_entropy=()),
    ]
    assert compute_mean_entropy(scores) == 2.5
    assert math.isnan(compute_mean_entropy(scores[2:]))


def test_the_reference_is_renewed_after_the_updates() -> None:
    objective = {"auxiliary": {"kl": {}}, "controllers": {"reference_reset": {"every_steps": 2}}}
    recorder = Recorder()
    run(make_config(objective), recorder)
    assert recorder.calls.count("reset_reference") == 1
    second = recorder.calls[recorder.calls.index("commit 1") + 1 :]
    assert second == [
        *("generate", "reward", "old_logp", "update 0", "update 1", "reset_reference"),
        *("receive 2", "publish 2", "adopt 2", "export hf-2", "commit 2"),
    ]


def test_a_large_kl_renews_the_reference() -> None:
    objective = {"auxiliary": {"kl": {}}, "controllers": {"reference_reset": {"kl_above": 0.2}}}
    recorder = Recorder()
    run(make_config(objective), recorder)
    # The updates report 0.25, the mean over both is above 0.2 in each step.
    assert recorder.calls.count("reset_reference") == 2
    # It is the mean, not the sum of the two updates.
    objective["controllers"]["reference_reset"]["kl_above"] = 0.3
    recorder = Recorder()
    run(make_config(objective), recorder)
    assert recorder.calls.count("reset_reference") == 0


def test_a_reset_that_waits_for_a_kl_needs_one() -> None:
    """Whatever is logged as actor/kl_loss: a KL of no token is none."""
    objective = {"auxiliary": {"kl": {}}, "controllers": {"reference_reset": {"kl_above": 0.2}}}
    recorder = Recorder()
    recorder.kl = None
    with pytest.raises(ValueError, match=r"the KL to the reference that the step's updates report is None"):
        run(make_config(objective), recorder)


def test_right_and_wrong_are_the_verifiers_word_not_the_rewards() -> None:
    """A penalty can take a right answer's reward below 0, and a bonus a wrong one's above."""
    objective = {"auxiliary": {"entropy": {}}, "controllers": {"aer": {"rho": 1.0}}}
    recorder = Recorder(shift=lambda item: -3.0 if item.sample_index else 2.0)
    run(make_config(objective, steps=1), recorder)
    samples = recorder.records[0].samples
    assert [sample.correct for sample in samples] == [False, True, False, True]
    # Half of each group is right.
    assert [sample.entropy_scale for sample in samples] == [0.5] * 4


def test_bonus_scale_follows_the_groups_accuracy() -> None:
    objective = {"auxiliary": {"entropy": {}}, "controllers": {"aer": {"rho": 0.75}}}
    # Group means 0.5 and 1: (0.75 - 0.5) / 0.75 and nothing.
    recorder = Recorder(verify=lambda item: float(item.sample_index or item.prompt_index))
    run(make_config(objective, steps=1), recorder)
    scales = [sample.entropy_scale for sample in recorder.records[0].samples]
    assert scales == pytest.approx([1 / 3, 1 / 3, 0.0, 0.0])
    # A verifier outside [0, 1] is taken to its end.
    recorder = Recorder(verify=lambda item: -5.0 if item.prompt_index else 7.0)
    run(make_config(objective, steps=1), recorder)
    assert [sample.entropy_scale for sample in recorder.records[0].samples] == [0.0, 0.0, 1.0, 1.0]
    recorder = Recorder()
    run(make_config(steps=1), recorder)
    assert {sample.entropy_scale for sample in recorder.records[0].samples} == {1.0}


@pytest.mark.parametrize(("every", "traced"), [(1, [1, 2]), (2, [2]), (0, [])])
def test_tokens_are_traced_where_rollouts_are_written(every, traced) -> None:
    """One response of each mini-batch, which hold the samples 0, 1 and 2, 3."""
    config = make_config()
    logging = config.logging.model_copy(update={"rollouts_every": every, "traced_responses": 2})
    recorder = Recorder()
    run(config.model_copy(update={"logging": logging}), recorder)
    of_step = {1: [range(0), range(0)], 2: [range(0), range(0)]} | {step: [range(1), range(2, 3)] for step in traced}
    assert recorder.traced == of_step[1] + of_step[2]


def test_a_mini_batch_traces_no_more_than_it_has() -> None:
    config = make_config()
    logging = config.logging.model_copy(update={"traced_responses": 1000})
    recorder = Recorder()
    run(config.model_copy(update={"logging": logging}), recorder)
    assert recorder.traced[:2] == [range(2), range(2, 4)]
    assert recorder.reported_updates == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_rows_have_their_own_trace() -> None:
    recorder = Recorder()
    run(make_config(steps=1), recorder)
    columns = rollout_columns(recorder.records[0])
    assert list(columns["sample_id"]) == [0, 1, 2, 3]
    # The updates traced the samples 0 and 2.
    assert [None if trace is None else trace.sample_id for trace in columns["trace"]] == [0, None, 2, None]
    assert columns["token_text"] == [("<7>", "<8>"), None, ("<7>", "<8>"), None]
    assert columns["old_entropy"][1].tolist() == [1.0, 1.0]
