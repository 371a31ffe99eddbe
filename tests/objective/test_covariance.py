import math

import numpy as np
import pytest

from megarl.config.objective import ObjectiveConfig
from megarl.objective.choices import choose
from megarl.objective.contexts import RESOLUTION, at_resolution
from megarl.objective.covariance import token_covariance
from megarl.objective.share import take_share
from megarl.objective.token_random import token_keys
from megarl.objective.tokens import Controls
from megarl.rules import Rule
from tests.objective.choosing import CONTROLS, batch_of, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

GOLDEN = [1.821205, -0.376019, -1.233419, 2.678604]


def golden(**columns):
    logp = [math.log(p) for p in (0.9, 0.1, 0.5, 0.01)]
    return make_tokens([4], **{"logp": logp, "old_logp": logp, "advantage": [1.0, 1.0, -1.0, -1.0], **columns})


def covariance(tokens):
    objective = ObjectiveConfig.model_validate({"auxiliary": {"kl_cov": {}}})
    share = take_share(objective, tokens, CONTROLS, SingleRank())
    return token_covariance(share).tolist()


def clip_cov(tokens, *, controls=CONTROLS, objective=None, **config):
    table = {"weights": {"clip_cov": config}, **(objective or {})}
    return choose(ObjectiveConfig.model_validate(table), tokens, controls, SingleRank())


def test_covariance_golden():
    assert covariance(golden()) == pytest.approx(GOLDEN, abs=2 * RESOLUTION)


def test_covariance_against_numpy():
    tokens = batch_of(random_samples([7, 1, 30], seed=5))
    advantage, logp = tokens.advantage_T.double().numpy(), at_resolution(tokens.logp_T.double()).numpy()
    expected = (advantage - advantage.mean()) * (logp - logp.mean())
    assert covariance(tokens) == pytest.approx(expected.tolist(), rel=1e-12)
    assert np.mean(covariance(tokens)) == pytest.approx(np.cov(advantage, logp, bias=True)[0, 1])


def test_clip_cov_drops_eligible_tokens_only():
    choices = clip_cov(golden(), fraction=1.0, low=1.0, high=5.0)
    assert choices.weight_T.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert choices.rule_T.tolist() == [int(Rule.CLIP_COV), 0, 0, int(Rule.CLIP_COV)]
    assert clip_cov(golden(), fraction=1.0, low=1.0, high=2.0).weight_T.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert clip_cov(golden(), fraction=1.0, low=4.0, high=5.0).weight_T.tolist() == [1.0] * 4


def test_clip_cov_bounds_are_strict():
    # Means are 0, so Cov is A logp: 1, 1, -1, -1 around means (logp is -2 +- 1).
    tokens = make_tokens([4], logp=[-1.0, -3.0, -1.0, -3.0], old_logp=-2.0, advantage=[1.0, -1.0, -1.0, 1.0])
    objective = {"clip": {"kind": "none"}}
    assert clip_cov(tokens, objective=objective, fraction=1.0, low=1.0, high=5.0).weight_T.tolist() == [1.0] * 4
    assert clip_cov(tokens, objective=objective, fraction=1.0, low=0.5, high=1.0).weight_T.tolist() == [1.0] * 4
    assert clip_cov(tokens, objective=objective, fraction=1.0, low=0.5, high=1.5).weight_T.tolist() == [0, 0, 1, 1]


def test_clip_cov_passes_over_tokens_that_the_bounds_clip_already():
    # A = 1 with r = 1.3 > 1.2 is clipped; A = -1 with r = 1.3 is not.
    logp = [math.log(p) for p in (0.9, 0.1, 0.5, 0.01)]
    moved = golden(old_logp=[value - math.log(1.3) for value in logp])
    assert clip_cov(moved, fraction=1.0).weight_T.tolist() == [1.0, 1.0, 1.0, 0.0]
    wide = {"clip": {"high": 0.4}}
    assert clip_cov(moved, objective=wide, fraction=1.0).weight_T.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_clip_cov_uses_the_bounds_bapo_found():
    # Positive 2 * 1.2 = 2.4, negative 2 * 1.3 = 2.6: hi rises to 1.3, and 1.3 is not above it.
    logp = [math.log(p) for p in (0.9, 0.1, 0.5, 0.01)]
    moved = golden(old_logp=[value - math.log(1.29) for value in logp])
    choices = clip_cov(moved, objective={"clip": {"kind": "bapo"}}, fraction=1.0)
    assert choices.bapo_bounds == pytest.approx((0.8, 1.3))
    assert choices.weight_T.tolist() == [0.0, 1.0, 1.0, 0.0]


def many():
    """200 eligible tokens (Cov = 2.25) among 400 (the others' is -2.25)."""
    return make_tokens(
        [100, 100, 200],
        logp=[-1.0] * 100 + [-4.0] * 100 + [-1.0] * 100 + [-4.0] * 100,
        old_logp=[-1.0] * 100 + [-4.0] * 100 + [-1.0] * 100 + [-4.0] * 100,
        advantage=[1.5] * 100 + [-1.5] * 100 + [-1.5] * 100 + [1.5] * 100,
        sample_ids=[5, 900, 33],
    )


def test_clip_cov_draws_the_tokens_with_the_smallest_keys():
    tokens = many()
    assert covariance(tokens) == pytest.approx([2.25] * 200 + [-2.25] * 200)
    keys = token_keys(
        seed=CONTROLS.seed, step=CONTROLS.step, sample_id_T=tokens.sample_id_T, position_T=tokens.position_T
    ).tolist()
    expected = sorted(range(200), key=keys.__getitem__)[:20]
    drop = (clip_cov(tokens, fraction=0.05).weight_T == 0).nonzero().flatten().tolist()
    assert drop == sorted(expected)


def test_clip_cov_draws_evenly_and_anew_each_step():
    tokens = many()
    times = np.zeros(400)
    for step in range(1, 201):
        dropped_T = clip_cov(tokens, controls=Controls(step=step, seed=0), fraction=0.05).weight_T == 0
        assert dropped_T.sum() == 20
        times += dropped_T.numpy()
    # 200 draws of 20 out of 200: 20 each, variance 200 * 0.1 * 0.9 = 18; chi-square of 199 degrees, std 20.
    assert times[200:].sum() == 0
    assert 199 - 5 * 20 < ((times[:200] - 20) ** 2 / 18).sum() < 199 + 5 * 20


@pytest.mark.parametrize(("fraction", "count"), [(1e-4, 1), (0.0075, 3), (0.0074, 2), (0.29, 116), (0.9, 200)])
def test_how_many_clip_cov_drops(fraction, count):
    """max(1, floor(fraction * 400)), the eligible 200 at most; 0.29 * 400 is 115.99999999999999 in floating point."""
    assert int((clip_cov(many(), fraction=fraction).weight_T == 0).sum()) == count


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.25, [3]), (0.5, [0, 3]), (0.74, [0, 3]), (1e-4, [3]), (1.0, [0, 1, 2, 3])]
)
def test_kl_cov_takes_the_highest_covariances(fraction, expected):
    choices = choose_of({"auxiliary": {"kl_cov": {"fraction": fraction}}}, golden())
    assert choices.kl_cov_T.nonzero().flatten().tolist() == expected
    assert choices.weight_T.tolist() == [1.0] * 4
    assert [bool(flags) for flags in choices.rule_T.tolist()] == choices.kl_cov_T.tolist()
    assert set(choices.rule_T.tolist()) <= {0, int(Rule.KL_COV)}


def test_kl_cov_ties_are_drawn_by_the_tokens_lots():
    values = [1.0] * 25 + [-1.0] * 25
    tokens = make_tokens(
        [25, 25, 25, 25],
        logp=[-1.0] * 25 + [-3.0] * 25 + [-1.0] * 25 + [-3.0] * 25,
        advantage=values + values,
        sample_ids=[8, 11, 2, 14],
    )
    chosen_T = choose_of({"auxiliary": {"kl_cov": {"fraction": 0.3}}}, tokens).kl_cov_T
    assert covariance(tokens) == [1.0] * 100
    lots_T = token_keys(
        seed=CONTROLS.seed, step=CONTROLS.step, sample_id_T=tokens.sample_id_T, position_T=tokens.position_T
    )
    assert chosen_T.nonzero().flatten().tolist() == sorted(lots_T.argsort()[:30].tolist())
    # No sample is favoured: each has some of the 30.
    assert {tokens.sample_id_T[at].item() for at in chosen_T.nonzero().flatten()} == {2, 8, 11, 14}


def test_clip_cov_reads_the_bounds_at_the_ratios_anchor():
    """DCPO's room depends on the anchor's probability: 0.5 under the trainer, 0.01 under the engine."""
    behavior = {"clip": {"kind": "dcpo"}, "ratio": {"anchor": "behavior"}}
    tokens = golden(behavior_logp=[math.log(p) for p in (0.9, 0.1, 0.5, 0.01)], old_logp=math.log(0.01))
    kept = clip_cov(tokens, objective=behavior, fraction=1.0, low=1.0, high=5.0)
    # At the anchor every ratio is 1, so nothing is clipped already and both high covariances are eligible.
    assert kept.weight_T.tolist() == [0.0, 1.0, 1.0, 0.0]
    old = clip_cov(tokens, objective={"clip": {"kind": "dcpo"}}, fraction=1.0, low=1.0, high=5.0)
    # Against 0.01 the first token's ratio is 90, above DCPO's cap of 10: it is clipped, and not eligible.
    assert old.weight_T.tolist() == [1.0, 1.0, 1.0, 0.0]
    # Rising from 0.2 to 0.5 is a ratio of 2.5: inside DCPO's room at 0.01 (3.7 at 0.02), outside it at 0.2.
    rises = {"logp": [math.log(0.5), -3.0, -3.0], "advantage": [1.0, -1.0, -1.0]}
    moved = make_tokens([3], behavior_logp=[math.log(0.2), -3.0, -3.0], old_logp=math.log(0.01), **rises)
    assert clip_cov(moved, objective=behavior, fraction=1.0, low=0.1, high=50.0).weight_T[0] == 1.0
