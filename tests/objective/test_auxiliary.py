"""Auxiliary losses against hand-computed values and finite differences."""

import math
from typing import ClassVar

import pytest
import torch

from megarl.config.auxiliary import AuxiliaryConfig, AuxiliaryVariant, Reading
from megarl.config.facts import NoFormulaError, RuleName
from megarl.objective.auxiliary import K3_LIMIT, auxiliary_loss, kl_estimate
from megarl.objective.tokens import Choices, Controls, TokenBatch
from tests.objective.tokens import make_tokens

CONTROLS = Controls(step=1, seed=0, entropy_coefficient=0.25)


def loss_of(config: dict, tokens: TokenBatch, choices: Choices | None = None) -> torch.Tensor:
    return auxiliary_loss(
        AuxiliaryConfig.model_validate(config), CONTROLS, tokens, choices or Choices.none(tokens.logp_T)
    )


def test_nothing_configured_is_zero() -> None:
    assert loss_of({}, make_tokens([2, 1])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # lp = -1, ref = -1.5: d = ref - lp = -0.5
    [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) + 0.5 - 1)],
)
def test_kl_to_the_reference(estimator: str, expected: float) -> None:
    tokens = make_tokens(ref_logp=[-1.5], logp=[-1.0])
    assert loss_of({"kl": {"coefficient": 2.0, "estimator": estimator}}, tokens).tolist() == pytest.approx(
        [2 * expected]
    )


def test_k1_pulls_to_the_reference_as_k2_does() -> None:
    """Its own gradient is 1 wherever the reference is."""
    logp_T = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    kl_estimate(logp_T, torch.tensor([-1.5, -1.5], dtype=torch.float64), estimator="k1").sum().backward()
    assert logp_T.grad is not None
    assert logp_T.grad.tolist() == [0.5, -0.5]


def test_k3_is_clamped_without_gradient() -> None:
    logp_T = torch.tensor([-30.0], dtype=torch.float64, requires_grad=True)
    value_T = kl_estimate(logp_T, torch.zeros(1, dtype=torch.float64), estimator="k3")
    value_T.sum().backward()
    assert value_T.item() == K3_LIMIT
    assert logp_T.grad is not None
    assert logp_T.grad.item() == 0


def test_kl_cov_penalises_chosen_tokens_only() -> None:
    logp_T = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(logp=logp_T, old_logp=[-1.5, -1.5, -0.5])
    none = Choices.none(tokens.logp_T)
    chosen = Choices(weight_T=none.weight_T, rule_T=none.rule_T, kl_cov_T=torch.tensor([True, True, False]))
    loss_T = loss_of({"kl_cov": {"coefficient": 3.0}}, tokens, chosen)
    assert loss_T.tolist() == pytest.approx([1.5, 1.5, 0.0])
    loss_T.sum().backward()
    assert logp_T.grad is not None
    assert logp_T.grad.tolist() == [3.0, -3.0, 0.0]


def test_kl_cov_is_inert_where_nothing_has_moved() -> None:
    logp_T = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(logp=logp_T, old_logp=[-1.0])
    none = Choices.none(tokens.logp_T)
    chosen = Choices(weight_T=none.weight_T, rule_T=none.rule_T, kl_cov_T=torch.tensor([True]))
    loss_of({"kl_cov": {}}, tokens, chosen).sum().backward()
    assert logp_T.grad is not None
    assert logp_T.grad.item() == 0


def test_entropy_bonus_takes_its_coefficient_from_the_controls() -> None:
    entropy_T = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(entropy=entropy_T, entropy_scale=[1.0, 0.5])
    loss_T = loss_of({"entropy": {"coefficient": 9.0}}, tokens)
    assert loss_T.tolist() == pytest.approx([-0.5, -0.125])
    loss_T.sum().backward()
    assert entropy_T.grad is not None
    assert entropy_T.grad.tolist() == pytest.approx([-0.25, -0.125])


def test_guided_loss() -> None:
    # Correct and below the expert: pulled up with weight 1. Correct and above: slope 0.5 pulls further up. Wrong and
    # above the expert: pushed down. Past the end of the expert's answer: nothing.
    logp_T = torch.tensor([-2.0, -0.5, -0.5, -1.0], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(
        logp=logp_T,
        advantage=[1.0, 2.0, -0.5, 1.0],
        expert_logp=[-1.0, -1.0, -1.0, math.nan],
        correct=[True, True, False, True],
    )
    loss_T = loss_of({"guided": {"coefficient": 0.1, "negative_slope": 0.5}}, tokens)
    assert loss_T.tolist() == pytest.approx([0.1 * 1.0, 0.1 * 2 * -0.25, 0.1 * 0.5 * 0.5, 0.0])
    loss_T.sum().backward()
    assert logp_T.grad is not None
    assert logp_T.grad.tolist() == pytest.approx([-0.1, -0.1, 0.05, 0.0])


@pytest.mark.parametrize(
    ("config", "column"),
    [({"kl": {}}, "ref_logp_T"), ({"kl_cov": {}}, "kl_cov_T"), ({"guided": {}}, "expert_logp_T")],
)
def test_a_missing_column_is_named(config: dict, column: str) -> None:
    with pytest.raises(ValueError, match=column):
        loss_of(config, make_tokens([2]))


def test_a_loss_that_nothing_computes_is_not_left_out() -> None:
    class Made(AuxiliaryVariant):
        reads: ClassVar[tuple[Reading, ...]] = ()
        needs_survey: ClassVar[bool] = False
        compares_updates: ClassVar[bool] = False
        rules: ClassVar[tuple[RuleName, ...]] = ()

    class Wider(AuxiliaryConfig):
        made: Made | None = None

    tokens = make_tokens([1])
    with pytest.raises(NoFormulaError, match=r"^Made is on, but the auxiliary loss has no formula for it"):
        auxiliary_loss(Wider(made=Made()), Controls(step=1, seed=0), tokens, Choices.none(tokens.logp_T))
