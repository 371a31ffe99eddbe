"""The composition: what multiplies what, and that the loss has exactly the gradient it reports."""

import math

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.loss import compute_token_loss
from megarl.objective.tokens import Choices, Controls, TokenBatch, TokenLoss
from megarl.rules import Rule
from tests.objective.tokens import make_tokens

CONTROLS = Controls(step=1, seed=0, entropy_coefficient=0.5, positive_scale=2.0, upper=(-0.25, 0.5), lower=(0.0, 0.2))
MIXED = {
    "clip": {"kind": "flexec"},
    "gate": {"dual": 3.0},
    "weights": {"positive_scale": {}},
    "auxiliary": {"entropy": {}, "kl": {"coefficient": 0.3, "estimator": "k2"}},
}


def composed(config: dict, tokens: TokenBatch, choices: Choices | None = None) -> TokenLoss:
    objective = ObjectiveConfig.model_validate(config)
    return compute_token_loss(objective, CONTROLS, tokens, choices or Choices.none(tokens.logp_T))


def random_tokens(seed: int, lengths: tuple[int, ...] = (5, 3, 7)) -> TokenBatch:
    draw = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    normal = torch.randn(4, size, generator=draw, dtype=torch.float64)
    old_logp_T = -normal[0].abs() - 0.2
    return make_tokens(
        lengths,
        logp=(old_logp_T + 0.4 * normal[1]).requires_grad_(),
        old_logp=old_logp_T,
        ref_logp=old_logp_T - 0.1,
        entropy=normal[2].abs().requires_grad_(),
        advantage=normal[3],
        weight=torch.rand(size, generator=draw, dtype=torch.float64),
    )


def test_weights_multiply_the_policy_loss_and_not_the_auxiliary() -> None:
    # r = e^0.1 inside the bounds, A = 2: policy loss -2 r, aggregation 0.25, scale 2, mask 0 on the second token.
    tokens = make_tokens(logp=[-0.9, -0.9], advantage=2.0, weight=0.25, entropy=1.5)
    none = Choices.none(tokens.logp_T)
    masked = Choices(weight_T=torch.tensor([1.0, 0.0]), rule_T=none.rule_T | int(Rule.CLIP_COV))
    loss = composed({"weights": {"positive_scale": {}}, "auxiliary": {"entropy": {}}}, tokens, masked)
    ratio = math.exp(0.1)
    assert loss.loss.item() == pytest.approx(0.25 * 2 * -2 * ratio + 2 * 0.25 * -0.5 * 1.5)
    assert loss.auxiliary.item() == pytest.approx(-0.375)
    assert loss.weight_T.tolist() == [2.0, 0.0]
    assert loss.gate_T.tolist() == pytest.approx([2 * ratio, 2 * ratio])
    assert loss.coefficient_T.tolist() == pytest.approx([0.25 * 2 * 2 * ratio, 0.0])
    assert loss.rule_T.tolist() == [int(Rule.CLIP_COV)] * 2


@pytest.mark.parametrize(
    "config",
    [
        MIXED,
        {"ratio": {"level": "sequence"}, "clip": {"low": 0.05, "high": 0.05}},
        {"ratio": {"level": "geometric"}, "clip": {"kind": "log", "low": 0.2, "high": 0.2}},
        {"gate": {"kind": "aspo"}, "shaping": {"entropy": {}}},
        {"gate": {"kind": "sapo"}, "clip": {"kind": "none"}, "auxiliary": {"entropy": {}}},
    ],
)
def test_the_gradient_is_that_of_finite_differences(config: dict) -> None:
    tokens = random_tokens(3)
    loss = composed(config, tokens)
    loss.loss.backward()
    for column in ("logp_T", "entropy_T"):
        leaf_T = getattr(tokens, column)
        gradient_T = torch.zeros_like(leaf_T) if leaf_T.grad is None else leaf_T.grad
        for at in range(leaf_T.numel()):
            moved = []
            for sign in (1, -1):
                values_T = leaf_T.detach().clone()
                values_T[at] += sign * 1e-6
                # The token-shaped advantage is detached from the entropy, so its value must stay.
                if column == "entropy_T" and "shaping" in config:
                    continue
                moved.append(composed(config, tokens.replace(**{column: values_T})).loss.item())
            if moved:
                # FlexEC's bounds are in closed form of the old probability: nothing detached moves with logp.
                assert gradient_T[at].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-6), (column, at)


def test_micro_batches_add_up() -> None:
    whole = composed(MIXED, random_tokens(5, (4, 6)))
    tokens = random_tokens(5, (4, 6)).detach()
    pieces = []
    for sequence in (0, 1):
        at_T = tokens.sequence_T == sequence
        columns = {
            name: getattr(tokens, name)[at_T]
            for name in ("logp_T", "old_logp_T", "ref_logp_T", "entropy_T", "advantage_T", "weight_T")
        }
        part = make_tokens([int(at_T.sum())], **{name.removesuffix("_T"): value for name, value in columns.items()})
        pieces.append(composed(MIXED, part))
    assert sum(piece.loss.item() for piece in pieces) == pytest.approx(whole.loss.item(), rel=1e-12)
    joined = TokenLoss.concatenate(pieces)
    assert torch.allclose(joined.coefficient_T, whole.coefficient_T, rtol=1e-12)
    assert joined.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)


def test_no_tokens() -> None:
    tokens = random_tokens(0, ())
    loss = composed(MIXED, tokens)
    assert loss.loss.item() == 0
    loss.loss.backward()


def test_no_entropy_gradient_where_no_loss_uses_it() -> None:
    tokens = random_tokens(1)
    composed({}, tokens).loss.backward()
    assert tokens.entropy_T.grad is None
