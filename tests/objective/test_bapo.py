import math

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.bapo import candidates
from megarl.objective.choices import choose
from tests.objective.choosing import CONTROLS, batch_of, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank, on_ranks
from tests.objective.tokens import make_tokens


def bounds(ratios, advantages, **clip):
    """lo and hi for tokens with these ratios."""
    tokens = make_tokens([len(ratios)], logp=[math.log(r) - 1.0 for r in ratios], advantage=advantages)
    return choose_of({"clip": {"kind": "bapo", **clip}}, tokens).bapo_bounds


def reference(ratio, advantage, clip):
    """The search as its authors write it, one evaluation per pair of bounds, in plain Python."""

    def balance(low, high):
        positive = sum(a * min(r, high) for r, a in zip(ratio, advantage, strict=True) if a > 0)
        negative = sum(-a * max(r, low) for r, a in zip(ratio, advantage, strict=True) if a < 0)
        return positive / negative if negative > 0 else math.inf

    low, high = clip.low_start, clip.high_start
    while balance(low, high) < clip.target and low < clip.low_stop - 1e-9:
        low = min(low + clip.low_step, clip.low_stop)
    while balance(low, high) < clip.target and high < clip.high_stop - 1e-9:
        high = min(high + clip.high_step, clip.high_stop)
    return low, high


def test_candidates_end_at_the_stop():
    assert candidates(0.6, 0.8, 0.05) == pytest.approx([0.6, 0.65, 0.7, 0.75, 0.8])
    assert candidates(0.6, 0.8, 0.05)[-1] == 0.8
    assert candidates(1.2, 1.25, 0.1) == [1.2, 1.25]
    assert candidates(1.2, 1.2, 0.1) == [1.2]


def test_enough_positive_weight_leaves_the_bounds():
    # 1.2 (of 3) against 1.
    assert bounds([3.0, 1.0], [1.0, -1.0]) == (0.6, 1.2)


def test_the_upper_bound_rises_until_the_positive_tokens_weigh_enough():
    # Negative 1.5; positive min(3, hi) reaches it at hi = 1.5.
    assert bounds([3.0, 1.5], [1.0, -1.0]) == pytest.approx((0.8, 1.5))


def test_a_negative_token_weighs_at_least_lo():
    # r = 0.5 weighs max(0.5, lo): 1.2 * 0.6 = 0.72 against positive 0.7 at first, then lo rises to 0.8.
    assert bounds([0.7, 0.5], [1.0, -1.2]) == pytest.approx((0.8, 2.0))
    assert bounds([0.73, 0.5], [1.0, -1.2]) == (0.6, 1.2)


def test_the_last_pair_is_taken_where_none_suffices():
    assert bounds([1.0, 1.0], [1.0, -9.0]) == (0.8, 2.0)
    assert bounds([1.0], [-1.0], low_stop=0.9, high_stop=3.0) == (0.9, 3.0)


def test_nothing_negative_or_nothing_at_all_leaves_the_bounds():
    assert bounds([1.0, 1.0], [1.0, 0.0]) == (0.6, 1.2)
    assert bounds([1.0], [0.0]) == (0.6, 1.2)
    assert bounds([], []) == (0.6, 1.2)


def test_the_target_is_a_ratio_not_a_share():
    # Positive 1, negative 2: ratio 0.5, share 1/3.
    assert bounds([1.0, 1.0], [1.0, -2.0], target=0.5) == (0.6, 1.2)
    assert bounds([1.0, 1.0], [1.0, -2.0], target=0.51) == (0.8, 2.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", [0.6, 0.9, 1.0, 1.1, 1.4])
def test_the_search_against_the_loop_of_its_authors(seed, target):
    objective = ObjectiveConfig.model_validate({"clip": {"kind": "bapo", "target": target, "high_step": 0.1}})
    tokens = batch_of(random_samples([30, 20, 50, 40], seed=seed))
    found = choose(objective, tokens, CONTROLS, SingleRank()).bapo_bounds
    ratio = (tokens.logp_T - tokens.old_logp_T).exp().tolist()
    assert found == pytest.approx(reference(ratio, tokens.advantage_T.tolist(), objective.clip))


def test_ranks_search_together_in_three_collectives():
    shares = [
        make_tokens([1], logp=math.log(3.0) - 1.0, advantage=1.0),
        make_tokens([1], logp=math.log(1.5) - 1.0, advantage=-1.0),
        make_tokens([0]),
    ]
    found, calls = on_ranks(lambda share, reduce: choose_of({"clip": {"kind": "bapo"}}, share, reduce), shares)
    assert [choices.bapo_bounds for choices in found] == [pytest.approx((0.8, 1.5))] * 3
    assert all(torch.equal(choices.weight_T, torch.ones_like(choices.weight_T)) for choices in found)
    assert [len(rank) for rank in calls] == [3, 3, 3]


def test_the_search_reads_the_shaped_advantage():
    # Plain: 1 against 1.2, so the bounds move. Shaped by min(10 H, A / 2): 1.5 against 0.6, they stay.
    clip = {"clip": {"kind": "bapo"}}
    tokens = make_tokens([2], logp=-1.0, entropy=1.0, advantage=[1.0, -1.2])
    assert choose_of(clip, tokens).bapo_bounds == pytest.approx((0.8, 2.0))
    shaped = clip | {"shaping": {"entropy": {"alpha": 10.0}}}
    assert choose_of(shaped, tokens).bapo_bounds == (0.6, 1.2)
