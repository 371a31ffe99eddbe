"""Bounds of every clip against hand-computed numbers, the papers' values and independent definitions."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.trust import (
    ArcherClip,
    BapoClip,
    ConstantClip,
    DcpoClip,
    FlexEcClip,
    GrowingClip,
    LogClip,
    NoClip,
    RatioConfig,
    StaleClip,
)
from megarl.objective.bounds import clipped_sides, token_bounds
from megarl.objective.tokens import Choices, Controls, TokenBatch
from megarl.rules import Rule
from tests.objective.tokens import make_tokens

FLEXEC = FlexEcClip(kind="flexec")
H, M = (-0.25, 0.5), (-0.13, 0.3)
STANDARD = (0.0, 0.2)


def bounds_of(clip, tokens: TokenBatch, **controls) -> tuple[list[float], list[float]]:
    low_T, high_T = token_bounds(clip, tokens, Controls(step=1, seed=0, **controls), Choices.none(tokens.logp_T))
    assert low_T.shape == high_T.shape == tokens.logp_T.shape
    assert low_T.dtype == high_T.dtype == tokens.logp_T.dtype
    assert not low_T.requires_grad
    assert not high_T.requires_grad
    return low_T.tolist(), high_T.tolist()


def mix(weight: float, first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return weight * first[0] + (1 - weight) * second[0], weight * first[1] + (1 - weight) * second[1]


@pytest.mark.parametrize(
    ("clip", "low", "high"),
    [
        (NoClip(kind="none"), 0.0, math.inf),
        (ConstantClip(low=0.2, high=0.28), 0.8, 1.28),
        (ConstantClip(low=1.0, high=math.inf), 0.0, math.inf),
        (ConstantClip(low=0.0, high=0.0), 1.0, 1.0),
        (LogClip(kind="log", low=0.4, high=0.4), 0.670320046, 1.491824698),
        (LogClip(kind="log", low=math.inf, high=math.inf), 0.0, math.inf),
        (LogClip(kind="log", low=5000.0, high=5000.0), 0.0, math.inf),
    ],
)
def test_bounds_without_a_token(clip, low, high) -> None:
    lows, highs = bounds_of(clip, make_tokens([3]))
    assert lows == pytest.approx([low] * 3)
    assert highs == pytest.approx([high] * 3)


def test_growing_bounds_by_hand() -> None:
    # sqrt of 1, 2, 3, 4 and of 1, 2: exp(-.1 sqrt(t)) and exp(.2 sqrt(t)).
    lows, highs = bounds_of(GrowingClip(kind="growing", low=0.1, high=0.2), make_tokens([4, 0, 2]))
    roots = [1.0, 1.414213562, 1.732050808, 2.0, 1.0, 1.414213562]
    assert lows == pytest.approx([math.exp(-0.1 * root) for root in roots])
    assert highs == pytest.approx([math.exp(0.2 * root) for root in roots])
    even = bounds_of(GrowingClip(kind="growing", low=math.inf, high=0.2, power=0.0), make_tokens([3]))
    assert even == ([0.0] * 3, pytest.approx([math.exp(0.2)] * 3))


def stale(log_ratios: list[float], above: float, **config: float) -> tuple[list[float], list[float]]:
    tokens = make_tokens(logp=[-1.0 + value for value in log_ratios], old_logp=-1.0)
    choices = replace(Choices.none(tokens.logp_T), stale_above=above)
    low_T, high_T = token_bounds(StaleClip(kind="stale", **config), tokens, Controls(step=1, seed=0), choices)
    return low_T.tolist(), high_T.tolist()


def test_stale_bounds_by_hand() -> None:
    # q = .1: |log r| of .1 is not stale; .2 is one q beyond: 1 / (1 + 1) of the side's distance; .3 two: 1 / (1 + 4).
    lows, highs = stale([0.0, 0.1, -0.1, 0.2, -0.2, 0.3, -0.3], 0.1, low=0.2, high=0.4)
    assert lows == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.9, 0.8, 0.96])
    assert highs == pytest.approx([1.4, 1.4, 1.4, 1.2, 1.4, 1.08, 1.4])
    cubed = stale([0.3], 0.1, high=0.9, power=3.0)[1]
    assert cubed == pytest.approx([1.1])  # 1 / (1 + 8) of .9
    assert stale([0.0, 2.0, -2.0], 0.0) == ([0.8] * 3, [1.2] * 3)  # no tail where most ratios are 1
    with pytest.raises(ValueError, match="hold no stale_above"):
        bounds_of(StaleClip(kind="stale"), make_tokens([1]))


def test_stale_bounds_take_the_ratio_at_its_level() -> None:
    tokens = make_tokens([2, 1], logp=[-0.5, -0.9, -1.2], old_logp=-1.0)  # log ratios .5, .1 (mean .3); -.2
    choices = replace(Choices.none(tokens.logp_T), stale_above=0.1)
    ratio = RatioConfig(level="sequence")
    low_T, high_T = token_bounds(StaleClip(kind="stale"), tokens, Controls(step=1, seed=0), choices, ratio=ratio)
    assert low_T.tolist() == pytest.approx([0.8, 0.8, 0.9])
    assert high_T.tolist() == pytest.approx([1.04, 1.04, 1.2])


def test_dcpo_goldens() -> None:
    q = [0.02, 0.3, 0.64, 0.9, 1.0, 0.3]
    tokens = make_tokens(old_logp=[math.log(value) for value in q], logp=[-3.0] * 6)
    lows, highs = bounds_of(DcpoClip(kind="dcpo"), tokens)
    assert lows == pytest.approx([0.5, 0.5, 0.5, 0.768742, 0.8, 0.5], abs=1e-6)
    assert highs == pytest.approx([3.701562, 1.457427, 1.25, 1.187184, 1.17082, 1.457427], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dcpo_of_impossible_tokens_is_finite(dtype) -> None:
    tokens = make_tokens(old_logp=[-80.0, -1e4, 0.0], dtype=dtype)
    assert bounds_of(DcpoClip(kind="dcpo", cap=10.0), tokens)[1][:2] == [10.0, 10.0]
    zero = bounds_of(DcpoClip(kind="dcpo", low=0.0, high=0.0), tokens)
    assert zero == ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [  # T = 400, p = .5: lambda_k = 1 - 2k/T; the numbers are (high(p), low(p)).
        (mix(1.0, H, STANDARD), STANDARD, (0.375, 0.2)),  # id, k = 0
        (mix(0.5, H, STANDARD), STANDARD, (0.2875, 0.2)),  # id, k = 100
        (STANDARD, STANDARD, (0.2, 0.2)),  # id, k = 200 and 400
        (STANDARD, mix(0.995, M, STANDARD), (0.2, 0.234825)),  # id, k = 201
        (STANDARD, mix(0.5, M, STANDARD), (0.2, 0.2175)),  # id, k = 300
        (mix(0.0, STANDARD, H), mix(0.995, M, STANDARD), (0.375, 0.234825)),  # did, k = 201
    ],
)
def test_flexec_goldens(upper, lower, expected) -> None:
    # The bound in q is the line in p where the ratio is on it: q = p / (1 + high) above, p / (1 - low) below.
    high, low = expected
    tokens = make_tokens(old_logp=[math.log(0.5 / (1 + high)), math.log(0.5 / (1 - low))])
    lows, highs = bounds_of(FLEXEC, tokens, upper=upper, lower=lower)
    assert highs[0] == pytest.approx(1 + high, abs=1e-9)
    assert lows[1] == pytest.approx(1 - low, abs=1e-9)


def test_flexec_ends_of_the_lines() -> None:
    tokens = make_tokens(old_logp=[-200.0, math.log(0.3), 0.0])
    lows, highs = bounds_of(FLEXEC, tokens, upper=H, lower=M)
    assert highs == pytest.approx([1.5, 1.395349, 1.2], abs=1e-6)
    assert lows == pytest.approx([0.7, 0.728408, 0.804598], abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    q=st.floats(1e-6, 1.0),
    p=st.floats(1e-6, 1.0),
    upper=st.tuples(st.floats(0, 1), st.floats(0, 2)),
    lower=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_flexec_closed_form_gates_as_the_line_in_the_current_probability(q, p, upper, lower) -> None:
    lines = {name: (-share * start, start) for name, (share, start) in {"upper": upper, "lower": lower}.items()}
    tokens = make_tokens(logp=[math.log(p)], old_logp=[math.log(q)])
    (low,), (high,) = bounds_of(FLEXEC, tokens, **lines)
    ratio = p / q
    for (slope, start), sign, bound in ((lines["upper"], 1, high), (lines["lower"], -1, low)):
        line = 1 + sign * (slope * p + start)
        if abs(ratio - line) > 1e-9 * max(ratio, 1):  # on the line rounding decides
            assert (ratio > line) == (ratio > bound)
    assert 0 <= low <= 1 <= high


def test_a_distance_of_zero_leaves_a_ratio_of_one_inside() -> None:
    """torch multiplies by a reciprocal: (1 + b) / (1 + b) is 1 - 2^-53 for this b."""
    start = 0.06037897869932653
    tokens = make_tokens(logp=[0.0], old_logp=[0.0])
    (low,), (high,) = bounds_of(FLEXEC, tokens, upper=(-start, start), lower=(-start, start))
    assert low <= 1.0 <= high


def test_flexec_line_that_reaches_zero() -> None:
    # low(p) = 1 - p: r >= r q always holds, so nothing is clipped; at q = 1 the closed form is 0 / 0.
    lows, _ = bounds_of(FLEXEC, make_tokens(old_logp=[-1.0, 0.0]), lower=(-1.0, 1.0))
    assert lows == [0.0, 0.0]
    # One rounding of a schedule below it is still a line; the distance at q = 1 is 0.
    lows, _ = bounds_of(FLEXEC, make_tokens(old_logp=[-1.0, 0.0]), lower=(-1.0, 1 - 1e-12))
    assert lows == pytest.approx([0.0, 1.0], abs=1e-11)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"upper": (-0.5, 0.25)}, "upper distance is 0.25 at p = 0 and -0.25 at p = 1"),
        ({"upper": (0.1, 0.25)}, "found 0.1"),
        ({"lower": (-0.1, 1.2)}, "not start above 1"),
        ({"lower": (math.nan, 0.2)}, "lower distance"),
    ],
)
def test_flexec_refuses_lines_without_a_meaning(lines, message) -> None:
    with pytest.raises(ValueError, match=message):
        bounds_of(FLEXEC, make_tokens([2]), **lines)


@pytest.mark.parametrize("clip", [FLEXEC, DcpoClip(kind="dcpo")])
def test_probability_is_that_of_the_ratios_anchor(clip) -> None:
    controls = Controls(step=1, seed=0, upper=H, lower=M)
    tokens = make_tokens([1], old_logp=-0.1, behavior_logp=-2.0)
    choices = Choices.none(tokens.logp_T)
    expected = token_bounds(clip, make_tokens([1], old_logp=-2.0), controls, choices)
    assert token_bounds(clip, tokens, controls, choices, ratio=RatioConfig(anchor="behavior")) == expected
    assert token_bounds(clip, tokens, controls, choices) != expected
    with pytest.raises(ValueError, match="no behavior_logp"):
        token_bounds(clip, make_tokens([1]), controls, choices, ratio=RatioConfig(anchor="behavior"))


def test_bapo_takes_the_bounds_that_were_chosen() -> None:
    tokens, clip = make_tokens([2]), BapoClip(kind="bapo")
    chosen = Choices(weight_T=torch.ones(2), rule_T=torch.zeros(2, dtype=torch.int32), bapo_bounds=(0.65, 1.3))
    low_T, high_T = token_bounds(clip, tokens, Controls(step=1, seed=0), chosen)
    assert (low_T.tolist(), high_T.tolist()) == ([0.65, 0.65], [1.3, 1.3])
    with pytest.raises(ValueError, match="no bapo_bounds"):
        bounds_of(clip, tokens)


def test_archer_widens_each_responses_own_top_share() -> None:
    # Response 0: the ceil(.8 * 5) = 4th smallest is .4, so only .9 is above. Response 2 (n = 2): the 2nd smallest is
    # the largest, nothing is above. Response 3 (n = 10): the 8th and 9th smallest are 8, only 9 is above.
    entropies = [0.1, 0.9, 0.2, 0.4, 0.3, 5.0, 6.0, 1, 2, 3, 9, 4, 5, 8, 6, 7, 8]
    clip = ArcherClip(kind="archer", low=0.2, high_entropy=0.4, quantile=0.8)
    lows, highs = bounds_of(clip, make_tokens([5, 0, 2, 10], old_entropy=entropies, entropy=0.0))
    wide = [1, 10]
    assert lows == pytest.approx([0.6 if index in wide else 0.8 for index in range(17)])
    assert highs == pytest.approx([1.4 if index in wide else 1.2 for index in range(17)])


def test_archer_rank_survives_rounding() -> None:
    assert 0.56 * 25 > 14  # the 14th smallest is meant, so 11 are above it
    clip = ArcherClip(kind="archer", low=0.0, high_entropy=1.0, quantile=0.56)
    assert sum(bounds_of(clip, make_tokens(old_entropy=[float(index) for index in range(25)]))[1]) == 25 + 11


@settings(max_examples=100, deadline=None)
@given(
    responses=st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=25), max_size=5),
    percent=st.integers(1, 99),
)
def test_archer_quantile_is_the_smallest_value_with_enough_at_or_below_it(responses, percent) -> None:
    entropies = [value for response in responses for value in response]
    tokens = make_tokens([len(response) for response in responses], old_entropy=entropies)
    clip = ArcherClip(kind="archer", low=0.1, high_entropy=0.5, quantile=percent / 100)
    _, highs = bounds_of(clip, tokens)
    expected = []
    for response in responses:
        share = Fraction(percent, 100)
        enough = [x for x in response if Fraction(sum(y <= x for y in response), len(response)) >= share]
        expected += [1.5 if value > min(enough) else 1.1 for value in response]
    assert highs == pytest.approx(expected)


def test_clipped_sides_are_strict_and_follow_the_advantages_sign() -> None:
    ratio_T = torch.tensor([0.7, 0.7, 0.7, 0.8, 1.3, 1.3, 1.3, 1.2, 1.0])
    advantage_T = torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0, -1.0, 0.0, 1.0, 1.0])
    rule_T = clipped_sides(ratio_T, advantage_T, torch.full((9,), 0.8), torch.full((9,), 1.2))
    assert rule_T.dtype == torch.int32
    assert rule_T.tolist() == [Rule.CLIP_LOW, 0, 0, 0, Rule.CLIP_HIGH, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "clip",
    [
        NoClip(kind="none"),
        ConstantClip(),
        LogClip(kind="log"),
        FLEXEC,
        DcpoClip(kind="dcpo"),
        ArcherClip(kind="archer"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tokens_and_no_gradient(clip, dtype) -> None:
    assert bounds_of(clip, make_tokens([0, 0], dtype=dtype)) == ([], [])
    logp_T = torch.full((2,), -1.0, dtype=dtype, requires_grad=True)
    bounds_of(clip, make_tokens(logp=logp_T, dtype=dtype))
