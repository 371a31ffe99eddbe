import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.objective import ObjectiveConfig
from megarl.objective.choices import choose
from megarl.rules import Rule
from tests.objective.choosing import CONTROLS, batch_of, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

P = [0.7, 0.15, 0.15]
ENTROPY = -sum(p * math.log(p) for p in P)
EXPECTED_Q = sum(p * p * (math.log(p) + ENTROPY) for p in P)


def kept(config, tokens):
    choices = choose_of({"weights": config}, tokens)
    return choices.weight_T.tolist(), choices.rule_T.tolist()


# 80/20


@settings(max_examples=100, deadline=None)
@given(
    entropies=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=25),
    percent=st.integers(1, 100),
)
def test_high_entropy_keeps_the_top_share_and_ties_at_its_edge(entropies, percent):
    tokens = make_tokens([len(entropies)], entropy=entropies, dtype=torch.float32)
    weight, rule = kept({"high_entropy": {"fraction": percent / 100}}, tokens)
    wanted = -(-percent * len(entropies) // 100)  # ceil in integers
    edge = sorted(entropies, reverse=True)[wanted - 1]
    assert weight == [float(entropy >= edge) for entropy in entropies]
    assert rule == [0 if entropy >= edge else int(Rule.LOW_ENTROPY) for entropy in entropies]


def test_high_entropy_counts_with_the_fraction_as_written():
    """0.07 * 100 is 7.000000000000001 in floating point; 7 tokens are meant."""
    weight, _ = kept({"high_entropy": {"fraction": 0.07}}, make_tokens([100], entropy=[float(i) for i in range(100)]))
    assert weight == [0.0] * 93 + [1.0] * 7


# STEER


def test_steer_worked_numbers():
    # p = pi_old = 0.5, H = 1: x (1 - x) / pi_old = 0.5, ln x + H = 0.306853; m = |A| 0.153426.
    tokens = make_tokens([3], logp=math.log(0.5), old_logp=math.log(0.5), entropy=1.0, advantage=[0.0, -1.0, 2.0])
    linear, rule = kept({"steer": {"shape": "linear"}}, tokens)
    assert linear == pytest.approx([1.2, 1.0, 0.8])
    assert rule == [0, 0, 0]
    exponential, _ = kept({"steer": {}}, tokens)
    assert exponential == pytest.approx([1.0, math.sqrt(0.8), 0.8])


def test_steer_where_all_metrics_are_equal_or_small():
    equal = make_tokens([2], logp=math.log(0.5), old_logp=math.log(0.5), entropy=1.0, advantage=[1.0, -1.0])
    assert kept({"steer": {"shape": "linear", "low": 0.7, "high": 1.2}}, equal)[0] == pytest.approx([0.95, 0.95])
    # m = 0.0153426 < 0.02: the weight is 0.8^(m / 0.02).
    small = make_tokens([2], logp=math.log(0.5), old_logp=math.log(0.5), entropy=1.0, advantage=[0.1, 0.0])
    metric = 0.1 * 0.5 * (1 - math.log(2))
    assert kept({"steer": {}}, small)[0] == pytest.approx([0.8 ** (metric / 0.02), 1.0])


def test_steer_clamps_the_probability_and_ignores_an_infinite_metric():
    # The second token: A / pi_old overflows even float64. The third: p = 1 is clamped, so m is about 1e-8.
    tokens = make_tokens([3], logp=[-1.0, -1.0, 0.0], old_logp=[-1.0, -800.0, 0.0], advantage=1.0, entropy=0.5)
    assert kept({"steer": {}}, tokens)[0] == pytest.approx([0.8, 1.0, 1.0], abs=1e-7)


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_steer_against_numpy(shape):
    tokens = batch_of(random_samples([5, 9, 1, 30], seed=3))
    x = np.clip(np.exp(tokens.logp_T.double().numpy()), 1e-8, 1 - 1e-8)
    old = np.exp(tokens.old_logp_T.double().numpy())
    omega = tokens.advantage_T.numpy() / old * x * (1 - x) * (np.log(x) + tokens.entropy_T.double().numpy())
    m = np.abs(omega)
    if shape == "linear":
        expected = 1.2 - (m - m.min()) * (1.2 - 0.8) / (m.max() - m.min())
    else:
        expected = np.clip(np.exp(np.log(0.8) / max(m.max(), 0.02) * m), 0.8, 1.0)
    assert kept({"steer": {"shape": shape}}, tokens)[0] == pytest.approx(expected.tolist(), rel=1e-6)


# Clip_B and Clip_V


def golden(advantages, repeats):
    """Tokens 0, 1, 2 of p = (.7, .15, .15), each `repeats[i]` times."""
    logp, advantage = [], []
    for p, times, a in zip(P, repeats, advantages, strict=True):
        logp += [math.log(p)] * times
        advantage += [a] * times
    return make_tokens([len(logp)], logp=logp, entropy=ENTROPY, expected_q=EXPECTED_Q, advantage=advantage)


def test_q_and_its_mean_are_the_published_numbers():
    tokens = golden([-1.0] * 3, [1, 1, 1])
    assert tokens.q_T.tolist() == pytest.approx([0.323493, -0.161747, -0.161747], abs=1e-6)
    assert pytest.approx(0.177921, abs=1e-6) == EXPECTED_Q


def test_clip_b_drops_negative_tokens_below_the_mean():
    # S = .323493 seven times, -.161747 once with A < 0 and once with A > 0: mean .215662, population std .201727
    # (with Bessel's correction .213964), so the two lie 1.8708 (1.7638) standard deviations below.
    tokens = golden([-1.0, -1.0, 1.0], [7, 1, 1])
    weight, rule = kept({"clip_b": {"mu": 1.87}}, tokens)
    assert weight == [1.0] * 7 + [0.0, 1.0]
    assert rule == [0] * 7 + [int(Rule.CLIP_B), 0]
    assert kept({"clip_b": {"mu": 1.8709}}, tokens)[0] == [1.0] * 9


def test_clip_v_drops_negative_tokens_far_above_zero():
    # x = N - S: -.145572 seven times, .339668 twice. std(x) = std(S) = .201727, x / std = 1.68379, not centred.
    tokens = golden([-1.0, -1.0, 1.0], [7, 1, 1])
    weight, rule = kept({"clip_v": {"mu": 1.6837, "max_fraction": 1.0}}, tokens)
    assert weight == [1.0] * 7 + [0.0, 1.0]
    assert rule == [0] * 7 + [int(Rule.CLIP_V), 0]
    assert kept({"clip_v": {"mu": 1.6839, "max_fraction": 1.0}}, tokens)[0] == [1.0] * 9


@pytest.mark.parametrize(("max_fraction", "allowed"), [(1.0, 3), (0.3, 2), (0.2, 1), (1e-4, 1)])
def test_clip_v_drops_at_most_its_share_and_the_worst_first(max_fraction, allowed):
    # x = -.0552 six times, .4803, .5219, .5112; population std .2640, so three lie beyond 1.5 of it (.3960).
    logp = [math.log(p) for p in (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 0.3)]
    tokens = make_tokens([9], logp=logp, entropy=0.5, expected_q=0.3, advantage=-1.0)
    x = (0.3 - tokens.q_T).tolist()
    worst = sorted(range(9), key=lambda index: -x[index])[:allowed]
    weight, _ = kept({"clip_v": {"mu": 1.5, "max_fraction": max_fraction}}, tokens)
    assert weight == [0.0 if index in worst else 1.0 for index in range(9)]
    assert sum(value > 1.5 * np.std(x) for value in x) == 3


@pytest.mark.parametrize("rule", ["clip_b", "clip_v"])
def test_tokens_that_are_all_alike_are_kept(rule):
    tokens = make_tokens([4], logp=-2.0, entropy=1.0, expected_q=0.4, advantage=-1.0)
    assert kept({rule: {"mu": 1e-9}}, tokens)[0] == [1.0] * 4


@pytest.mark.parametrize("seed", range(3))
def test_clip_b_and_clip_v_against_numpy(seed):
    tokens = batch_of(random_samples([20, 35, 45], seed=seed))
    logp, entropy = tokens.logp_T.double().numpy(), tokens.entropy_T.double().numpy()
    s = np.exp(logp) * (logp + entropy)
    x = tokens.expected_q_T.double().numpy() - s
    negative = tokens.advantage_T.numpy() < 0
    drop_b = negative & (s - s.mean() < -0.5 * s.std())
    assert kept({"clip_b": {"mu": 0.5}}, tokens)[0] == (~drop_b).astype(float).tolist()
    beyond = negative & (x > 0.5 * x.std())
    drop_v = beyond & (x >= np.sort(x[beyond])[-10:].min())
    assert kept({"clip_v": {"mu": 0.5, "max_fraction": 0.1}}, tokens)[0] == (~drop_v).astype(float).tolist()
    assert drop_b.any()
    assert beyond.sum() > 10


def test_rules_read_the_shaped_advantage():
    """kappa > 1 keeps the sign, so only STEER's weights can tell."""
    shaped = ObjectiveConfig.model_validate({"weights": {"steer": {}}, "shaping": {"entropy": {"alpha": 10.0}}})
    tokens = make_tokens([2], logp=-1.0, entropy=[0.5, 0.0], advantage=[1.0, 1.5])
    plain = make_tokens([2], logp=-1.0, entropy=[0.5, 0.0], advantage=[1.5, 1.5])
    found = choose(shaped, tokens, CONTROLS, SingleRank()).weight_T
    expected = choose_of({"weights": {"steer": {}}}, plain).weight_T
    assert torch.equal(found, expected)
    assert not torch.equal(found, choose_of({"weights": {"steer": {}}}, tokens).weight_T)
