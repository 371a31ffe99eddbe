"""Weights by sign, surprisal and entropy change, by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.choices import choose
from tests.objective.accounting import compute, metrics_of
from tests.objective.choosing import CONTROLS, batch_of, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

# Ten tokens with A > 0, five with A < 0, one with A = 0; the least likely of each sign are 3, 9 and 12.
LOGP = [-1.0, -2.0, -0.5, -6.0, -1.5, -0.1, -0.2, -0.3, -0.4, -5.0, -1.0, -2.0, -7.0, -3.0, -0.1, -9.0]
ADVANTAGE = [2.0] * 10 + [-1.0] * 5 + [0.0]


def stare_weights(**config: float) -> list[float]:
    return choose_of({"weights": {"stare": config}}, make_tokens(logp=LOGP, advantage=ADVANTAGE)).weight_T.tolist()


def test_stare_weighs_the_most_surprising_tokens_of_each_sign() -> None:
    expected = [1.0] * 16
    expected[3] = 1.5
    assert stare_weights(fraction=0.1, positive=1.5) == expected
    expected[12] = 0.5  # ceil(0.1 * 5) is one token
    assert stare_weights(fraction=0.1, positive=1.5, negative=0.5) == expected
    expected[9] = 1.5  # ceil(0.11 * 10) are two
    assert stare_weights(fraction=0.11, positive=1.5, negative=0.5) == expected
    assert stare_weights(fraction=1.0, positive=1.5, negative=0.5) == [1.5] * 10 + [0.5] * 5 + [1.0]


def test_stare_counts_with_the_fraction_as_written() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point; 7 tokens are meant."""
    tokens = make_tokens(logp=[-float(i) for i in range(100)], advantage=1.0)
    weight = choose_of({"weights": {"stare": {"fraction": 0.07}}}, tokens).weight_T.tolist()
    assert weight == [1.0] * 93 + [1.1] * 7


def test_stare_has_exactly_its_share_of_ties() -> None:
    tokens = make_tokens([5, 5], logp=-2.0, advantage=1.0)
    assert (
        sorted(choose_of({"weights": {"stare": {"fraction": 0.3}}}, tokens).weight_T.tolist()) == [1.0] * 7 + [1.1] * 3
    )


@pytest.mark.parametrize("advantage", [0.0, -1.0])
def test_stare_without_a_token_of_the_sign(advantage: float) -> None:
    tokens = make_tokens([3], advantage=advantage)
    assert choose_of({"weights": {"stare": {}}}, tokens).weight_T.tolist() == [1.0] * 3


def test_a_closed_gate_leaves_stare_out() -> None:
    objective = ObjectiveConfig.model_validate({"weights": {"stare": {"negative": 0.5}}})
    tokens = make_tokens(logp=LOGP, advantage=ADVANTAGE)
    closed = choose(objective, tokens, replace(CONTROLS, stare_acts=False), SingleRank())
    assert closed.weight_T.tolist() == [1.0] * 16
    assert closed.rule_T.tolist() == [0] * 16
    assert torch.count_nonzero(choose(objective, tokens, CONTROLS, SingleRank()).weight_T != 1.0) == 2


P = [0.7, 0.15, 0.15]
ENTROPY = -sum(p * math.log(p) for p in P)
EXPECTED_Q = sum(p * p * (math.log(p) + ENTROPY) for p in P)


def test_entropy_flow_by_hand() -> None:
    # N - Q is .177921 - .323493 = -.145572 at p = .7 and .339668 at p = .15. With A = 1, 1, -1 and weight 1 the changes
    # are -.145572, .339668 and -.339668: U = .339668, D = .485240, lambda = .145572 / .824908 = .176470.
    tokens = make_tokens(logp=[math.log(0.7), math.log(0.15), math.log(0.15), math.log(0.15)], entropy=ENTROPY)
    tokens = tokens.replace(
        old_logp_T=tokens.logp_T,
        expected_q_T=torch.full((4,), EXPECTED_Q, dtype=torch.float64),
        advantage_T=torch.tensor([1.0, 1.0, -1.0, 0.0], dtype=torch.float64),
    )
    choices = choose_of({"weights": {"entropy_flow": {}}}, tokens)
    assert choices.weight_T.tolist() == pytest.approx([0.82353, 1.17647, 0.82353, 1.0], abs=1e-4)
    loss = compute(tokens, choices=choices, clip={"kind": "none"}, gate={"dual": math.inf})
    assert metrics_of(tokens, loss)["entropy/budget"][0] == pytest.approx(0.0, abs=1e-5)
    alone = compute(tokens, clip={"kind": "none"}, gate={"dual": math.inf})
    assert metrics_of(tokens, alone)["entropy/budget"][0] == pytest.approx(-0.145572, abs=1e-5)


def test_entropy_flow_counts_ratios_and_the_aggregations_weights() -> None:
    # Changes .339668 w r A: 2 * 3 * .339668 up against .339668 down: lambda = (1 - 6) / 7.
    logp = math.log(0.15)
    tokens = make_tokens(
        logp=logp,
        old_logp=[logp - math.log(3.0), logp],
        entropy=ENTROPY,
        expected_q=EXPECTED_Q,
        advantage=[1.0, -1.0],
        weight=[2.0, 1.0],
    )
    weight = choose_of({"clip": {"kind": "none"}, "weights": {"entropy_flow": {}}}, tokens).weight_T.tolist()
    assert weight == pytest.approx([2 / 7, 12 / 7])


def test_entropy_flow_where_nothing_flows() -> None:
    still = make_tokens(logp=0.0, old_logp=0.0, entropy=1e-7, expected_q=0.0, advantage=[1.0, -1.0])
    assert choose_of({"weights": {"entropy_flow": {}}}, still).weight_T.tolist() == [1.0, 1.0]
    one_way = make_tokens(logp=math.log(0.15), entropy=ENTROPY, expected_q=EXPECTED_Q, advantage=[1.0, 0.0])
    assert choose_of({"weights": {"entropy_flow": {}}}, one_way).weight_T.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("objective", "cancels"),
    [
        ({"clip": {"kind": "none"}}, True),
        ({"clip": {"kind": "none"}, "ratio": {"level": "prefix"}}, True),
        ({"clip": {"low": 0.1, "high": 0.1}}, False),
        ({"clip": {"kind": "none"}, "gate": {"dual": 1.2}}, False),
        ({"clip": {"kind": "none"}, "gate": {"kind": "up"}}, False),
        ({"clip": {"kind": "none"}, "weights": {"tis": {}}}, False),
    ],
)
def test_entropy_flow_cancels_where_nothing_else_weighs_or_drops(objective: dict[str, Any], cancels: bool) -> None:
    config = {"gate": {"dual": math.inf}, **objective}
    config["weights"] = {"entropy_flow": {}, **objective.get("weights", {})}
    tokens = batch_of(random_samples([40, 30, 50, 60], seed=1))
    loss = compute(tokens, choices=choose_of(config, tokens), **config)
    budget_T = loss.coefficient_T.double() * (tokens.expected_q_T.double() - tokens.q_T)
    assert (abs(budget_T.sum() / budget_T.abs().sum()) < 1e-6) == cancels


@pytest.mark.parametrize(("advantage", "weight"), [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0)])
def test_entropy_flow_of_one_direction_leaves_nothing(advantage: float, weight: float) -> None:
    tokens = make_tokens(
        logp=[math.log(0.15)] * 2, entropy=ENTROPY, expected_q=EXPECTED_Q, advantage=[advantage, 2 * advantage]
    )
    assert choose_of({"weights": {"entropy_flow": {}}}, tokens).weight_T.tolist() == [weight] * 2
