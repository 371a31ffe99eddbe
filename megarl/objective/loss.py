"""The loss of a micro-batch, composed from the plug points, and the gradient it sends through each token.

loss = sum over tokens of aggregation weight * (token weights * gate loss + auxiliary losses).

The composition is differentiated twice on the tokens' own scalars, [T] numbers, before the model's backward starts: so
`coefficient_T`, what multiplies grad log p of each token, is not an estimate but the very number that the update uses,
for every gate and level. `loss` then has that gradient in logp and entropy.
"""

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.auxiliary import auxiliary_loss, kl_estimate
from megarl.objective.bounds import no_bounds, token_bounds
from megarl.objective.gates import apply_gate, dual_bounds
from megarl.objective.shaping import shaped_advantage
from megarl.objective.tokens import Choices, Controls, TokenBatch, TokenLoss
from megarl.objective.weights import token_weights


def compute_token_loss(
    objective: ObjectiveConfig, controls: Controls, tokens: TokenBatch, choices: Choices
) -> TokenLoss:
    """The configured loss of these tokens, with gradient in `tokens.logp_T` and `tokens.entropy_T`.

    Raises:
        ValueError: a rule of the objective lacks a column of the tokens.
    """
    with torch.enable_grad():
        logp_T = tokens.logp_T.detach().requires_grad_()
        entropy_T = tokens.entropy_T.detach().requires_grad_()
        leaf = tokens.replace(logp_T=logp_T, entropy_T=entropy_T)
        advantage_T = shaped_advantage(objective.shaping, leaf)
        low_T, high_T = token_bounds(objective.clip, leaf, controls, choices, ratio=objective.ratio)
        acting = (low_T, high_T) if objective.bounds_act else no_bounds(leaf.logp_T)
        gate = apply_gate(objective, leaf, controls, advantage_T=advantage_T, low_T=acting[0], high_T=acting[1])
        local_T, rule_T = token_weights(objective.weights, leaf, controls, advantage_T)
        weight_T = local_T * choices.weight_T
        policy = (tokens.weight_T * weight_T * gate.loss_T).sum()
        auxiliary = (tokens.weight_T * auxiliary_loss(objective.auxiliary, controls, leaf, choices)).sum()
        gate_T = _gradient(gate.loss_T.sum(), logp_T)
        policy_T = _gradient(policy, logp_T)
        auxiliary_T = _gradient(auxiliary, logp_T)
        entropy_gradient_T = _gradient(auxiliary, entropy_T)
    return TokenLoss(
        loss=_with_gradient(
            (policy + auxiliary).detach(),
            (tokens.logp_T, policy_T + auxiliary_T),
            (tokens.entropy_T, entropy_gradient_T) if objective.auxiliary.reads("entropy") else None,
        ),
        policy_T=gate.loss_T.detach(),
        auxiliary=auxiliary.detach(),
        kl_T=_measured_kl(objective, leaf),
        advantage_T=advantage_T.detach(),
        ratio_T=gate.ratio_T.detach(),
        low_T=low_T,
        high_T=high_T,
        dual_T=dual_bounds(objective.gate, high_T),
        gate_T=-gate_T,
        weight_T=weight_T.detach(),
        coefficient_T=-policy_T,
        rule_T=gate.rule_T | rule_T | choices.rule_T,
    )


def _gradient(value: Tensor, leaf_T: Tensor) -> Tensor:
    """d value / d leaf; 0 where the value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf_T)
    (gradient_T,) = torch.autograd.grad(value, leaf_T, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf_T) if gradient_T is None else gradient_T


def _with_gradient(value: Tensor, *parts: tuple[Tensor, Tensor] | None) -> Tensor:
    """`value`, whose derivative with respect to each part's first tensor is its second.

    The entropy is left out where no loss uses it, which spares its arithmetic in the vocabulary's backward.
    """
    for part in parts:
        if part is not None:
            tensor_T, gradient_T = part
            value = value + (gradient_T * (tensor_T - tensor_T.detach())).sum()
    return value


def _measured_kl(objective: ObjectiveConfig, tokens: TokenBatch) -> Tensor | None:
    if tokens.ref_logp_T is None or objective.auxiliary.kl is None:
        return None
    return kl_estimate(tokens.logp_T.detach(), tokens.ref_logp_T, estimator=objective.auxiliary.kl.estimator)
