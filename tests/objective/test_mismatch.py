import math

import pytest
import torch

from megarl.rules import Rule
from tests.objective.choosing import choose_of
from tests.objective.simulated_ranks import on_ranks, raised_on_ranks
from tests.objective.tokens import make_tokens

LOG = math.log


def tokens_of(log_rhos, **columns):
    """Responses with these log(old / behavior) per token."""
    flat = [value for response in log_rhos for value in response]
    columns = {"old_logp": -1.0, "behavior_logp": [-1.0 - value for value in flat], **columns}
    return make_tokens([len(response) for response in log_rhos], **columns)


def weights(config, tokens):
    choices = choose_of({"weights": config}, tokens)
    assert choices.kl_cov_T is None
    assert choices.bapo_bounds is None
    return choices.weight_T.tolist(), choices.rule_T.tolist()


def test_tis_limits_token_ratios():
    tokens = tokens_of([[LOG(0.5), LOG(1.5)], [LOG(4.0), 0.0]])
    weight, rule = weights({"tis": {"cap": 2.0, "floor": 0.75}}, tokens)
    assert weight == pytest.approx([0.75, 1.5, 2.0, 1.0])
    assert rule == [int(Rule.TIS), 0, int(Rule.TIS), 0]


def test_tis_of_a_response_is_the_limited_product():
    tokens = tokens_of([[LOG(0.5), LOG(3.0)], [LOG(2.0), LOG(2.0)]])
    weight, rule = weights({"tis": {"level": "sequence", "cap": 2.0}}, tokens)
    assert weight == pytest.approx([1.5, 1.5, 2.0, 2.0])
    assert rule == [0, 0, int(Rule.TIS), int(Rule.TIS)]


def test_tis_normalises_by_the_mean_weight_of_all_tokens_of_all_ranks():
    # Limited weights 0.5, 1.5 | 2, 1: mean 1.25.
    shares = [tokens_of([[LOG(0.5), LOG(1.5)]]), tokens_of([[LOG(4.0), 0.0]]), tokens_of([[]])]
    config = {"weights": {"tis": {"normalise": True}}}
    found, calls = on_ranks(lambda share, reduce: choose_of(config, share, reduce).weight_T.tolist(), shares)
    assert found == [pytest.approx([0.4, 1.2]), pytest.approx([1.6, 0.8]), []]
    assert [len(rank) for rank in calls] == [3, 3, 3]


def test_icepop_is_a_mask_and_a_weight_per_token():
    # rho = 0.5 and 5 are kept to rounding; 0.25 keeps the exact boundary.
    tokens = tokens_of([[LOG(0.2), LOG(0.6), LOG(4.9), LOG(5.1)]])
    weight, rule = weights({"importance_mask": {"low": 0.5, "high": 5.0}}, tokens)
    assert weight == pytest.approx([0.0, 0.6, 4.9, 0.0])
    assert rule == [int(Rule.IMPORTANCE_MASK), 0, 0, int(Rule.IMPORTANCE_MASK)]


def test_importance_mask_bounds_are_inside():
    tokens = tokens_of([[0.0, 0.5]])
    assert weights({"importance_mask": {"low": 1.0, "high": 1.0}}, tokens)[0] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        # Products 0.25 * 3 = 0.75 and 3 * 3 = 9; geometric means sqrt(0.75) and 3.
        ("sequence", [0.75, 0.75, 0.0, 0.0]),
        ("geometric", [0.75**0.5, 0.75**0.5, 3.0, 3.0]),
    ],
)
def test_importance_mask_of_a_response(level, expected):
    tokens = tokens_of([[LOG(0.25), LOG(3.0)], [LOG(3.0), LOG(3.0)]])
    assert weights({"importance_mask": {"level": level}}, tokens)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Geometric means 1 and exp(0.0015).
        ({"statistic": "k1", "low": 0.999, "high": 1.001}, [1.0, 1.0, 0.0, 0.0]),
        # Means of half squares: 0.005 and 1.125e-6.
        ({"statistic": "k2", "low": 0.0, "high": 0.004}, [0.0, 0.0, 1.0, 1.0]),
        ({"statistic": "k2", "low": 0.0, "high": 0.0051}, [1.0, 1.0, 1.0, 1.0]),
        # Means of rho - 1 - log rho: (0.0051709 + 0.0048374) / 2 = 0.0050042 and 1.126e-6.
        ({"statistic": "k3", "low": 0.0, "high": 0.0050041}, [0.0, 0.0, 1.0, 1.0]),
        ({"statistic": "k3", "low": 0.0, "high": 0.0050043}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_sequence_rejection_keeps_or_drops_whole_responses(config, expected):
    weight, rule = weights({"sequence_rejection": config}, tokens_of([[0.1, -0.1], [0.0015, 0.0015]]))
    assert weight == expected
    assert rule == [0 if kept else int(Rule.SEQUENCE_REJECTION) for kept in expected]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_extreme_mismatch_stays_finite(level):
    """A token that the engine could not have sampled, and long products beyond float32."""
    tokens = tokens_of([[0.0] * 3, [30.0] * 400], dtype=torch.float32)
    tokens.behavior_logp_T[0] = -math.inf
    weight, _ = weights({"tis": {"level": level, "cap": math.inf}}, tokens)
    assert max(weight) == pytest.approx(math.exp(20.0))
    assert weights({"importance_mask": {"level": level, "low": 0.0}}, tokens)[0][3:] == [0.0] * 400
    for statistic in ("k1", "k2", "k3"):
        kept, _ = weights({"sequence_rejection": {"statistic": statistic, "low": 0.5, "high": 2.0}}, tokens)
        assert kept == [0.0] * 403


def test_a_masks_lower_bound_sees_ratios_below_the_weights_clamp():
    tokens = tokens_of([[-30.0] * 2])
    assert weights({"importance_mask": {"low": 1e-10}}, tokens)[0] == [0.0, 0.0]


def test_rejection_multiplies_with_tis_and_flags_add():
    tokens = tokens_of([[LOG(4.0)], [0.0]])
    weight, rule = weights({"tis": {}, "sequence_rejection": {}}, tokens)
    assert weight == [0.0, 1.0]
    assert rule == [int(Rule.TIS | Rule.SEQUENCE_REJECTION), 0]


@pytest.mark.parametrize("rule", ["tis", "importance_mask", "sequence_rejection"])
def test_missing_behavior_log_probs_are_named(rule):
    with pytest.raises(ValueError, match="tokens have no behavior_logp_T"):
        choose_of({"weights": {rule: {}}}, make_tokens([2]))


def test_a_nan_stops_every_rank_and_names_its_sample():
    shares = [tokens_of([[0.0, math.nan]], sample_ids=[31]), tokens_of([[0.0]], sample_ids=[32])]
    first, second = raised_on_ranks(lambda share, reduce: choose_of({"weights": {"tis": {}}}, share, reduce), shares)
    assert "behavior_logp of 1 response tokens, in samples [31] of this rank" in first
    assert "behavior_logp of 1 response tokens, on other ranks" in second
