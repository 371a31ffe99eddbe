"""What the tests of gates share: an objective from its gate and clip, its gate with its bounds, and g."""

import math

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import RatioConfig
from megarl.objective.bounds import token_bounds
from megarl.objective.gates import GateResult, apply_gate
from megarl.objective.tokens import Choices, Controls, TokenBatch
from megarl.rules import Rule
from tests.objective.tokens import make_tokens

OFF = {"kind": "none"}
CLIP = {"kind": "constant", "low": 0.2, "high": 0.28}
CONTROLS = Controls(step=1, seed=0, upper=(-0.25, 0.5), lower=(-0.13, 0.3))
"""FlexEC's two lines."""


def objective(gate, clip=OFF, **ratio) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"gate": gate, "clip": clip, "ratio": RatioConfig(**ratio)})


def gated(config: ObjectiveConfig, tokens: TokenBatch) -> GateResult:
    low_T, high_T = token_bounds(config.clip, tokens, CONTROLS, Choices.none(tokens.logp_T), ratio=config.ratio)
    return apply_gate(config, tokens, CONTROLS, advantage_T=tokens.advantage_T, low_T=low_T, high_T=high_T)


def gradient(
    config: ObjectiveConfig, ratios, advantages, *, old=0.3, weight=None, **columns
) -> tuple[Tensor, GateResult]:
    """g = -d (sum of weight * loss) / d logp of tokens with these ratios to an old probability."""
    old_logp_T = torch.full((len(ratios),), math.log(old), dtype=torch.float64)
    logp_T = (old_logp_T + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    tokens = make_tokens(logp=logp_T, old_logp=old_logp_T, advantage=advantages, **columns)
    result = gated(config, tokens)
    weighted_T = result.loss_T if weight is None else result.loss_T * torch.tensor(weight, dtype=torch.float64)
    (grad_T,) = torch.autograd.grad(weighted_T.sum(), logp_T)
    return -grad_T, result


def rules(result: GateResult) -> list[Rule]:
    return [Rule(value) for value in result.rule_T.tolist()]
