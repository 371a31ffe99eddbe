"""Losses beside the policy loss, per token, weighted by the aggregation and never by the token weights.

A mask that takes a token out of the policy gradient leaves its entropy bonus and its KL alone: they do not depend on
the ratio the mask distrusts.
"""

from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from megarl.config.auxiliary import AuxiliaryConfig, EntropyBonus, GuidedLoss, KlCov, KlLoss
from megarl.config.facts import NoFormulaError
from megarl.objective.ratio import LOG_RATIO_LIMIT
from megarl.objective.tokens import Choices, Controls, TokenBatch

K3_LIMIT = 10.0
"""The k3 estimate is clamped to ±this, as verl does; beyond it the token has no KL gradient."""


def auxiliary_loss(config: AuxiliaryConfig, controls: Controls, tokens: TokenBatch, choices: Choices) -> Tensor:
    """[T], differentiable in logp and entropy: every configured loss times its coefficient.

    Raises:
        ValueError: a configured loss lacks its column (`ref_logp_T`, `kl_cov_T`, `expert_logp_T`).
        NoFormulaError: a loss is on that is not known here.
    """
    loss_T = torch.zeros_like(tokens.logp_T)
    for loss in config.on.values():
        match loss:
            case KlLoss():
                ref_logp_T = _required(tokens.ref_logp_T, "ref_logp_T", "kl")
                kl_T = kl_estimate(tokens.logp_T, ref_logp_T, estimator=loss.estimator)
                loss_T = loss_T + loss.coefficient * kl_T
            case KlCov():
                chosen_T = _required(choices.kl_cov_T, "kl_cov_T", "kl_cov")
                distance_T = (tokens.logp_T - tokens.old_logp_T).abs()
                loss_T = loss_T + loss.coefficient * torch.where(chosen_T, distance_T, 0.0)
            case EntropyBonus():
                if controls.entropy_coefficient != 0:
                    scale_T = 1.0 if tokens.entropy_scale_T is None else tokens.entropy_scale_T
                    loss_T = loss_T - controls.entropy_coefficient * scale_T * tokens.entropy_T
            case GuidedLoss():
                loss_T = loss_T + loss.coefficient * guided_loss(loss, tokens)
            case _:
                raise NoFormulaError(loss, "the auxiliary loss")
    return loss_T


def guided_loss(config: GuidedLoss, tokens: TokenBatch) -> Tensor:
    """CalibRL (ICLR 2026): |A| LeakyReLU(-(2 [correct] - 1) (logp - expert_logp)), 0 past the expert answer's end.

    The expert's log-prob is that of the answer's token at the same position: the two sequences are not aligned.
    """
    expert_logp_T = _required(tokens.expert_logp_T, "expert_logp_T", "guided")
    correct_T = _required(tokens.correct_T, "correct_T", "guided")
    inside_T = ~expert_logp_T.isnan()
    gap_T = tokens.logp_T - torch.where(inside_T, expert_logp_T, tokens.logp_T.detach())
    sign_T = torch.where(correct_T, 1.0, -1.0).to(gap_T.dtype)
    pull_T = F.leaky_relu(-sign_T * gap_T, negative_slope=config.negative_slope)
    return torch.where(inside_T, tokens.advantage_T.abs() * pull_T, 0.0)


def kl_estimate(logp_T: Tensor, ref_logp_T: Tensor, *, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL divergence", 2020).

    With d = ref - logp: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1, clamped as verl does (d to ±20, k3 to ±10).
    On samples of the policy, k2 has the gradient of KL(policy || reference) in expectation, k3 that of
    KL(reference || policy). k1's own gradient, grad log p, knows nothing of the reference: so k1 has its unbiased
    value and k2's gradient (verl's "k1+"). All three are detached from ref_logp_T by its construction.
    """
    match estimator:
        case "k1":
            half_square_T = 0.5 * (logp_T - ref_logp_T).square()
            return half_square_T + (logp_T - ref_logp_T - half_square_T).detach()
        case "k2":
            return 0.5 * (logp_T - ref_logp_T).square()
        case "k3":
            difference_T = (ref_logp_T - logp_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            return (torch.expm1(difference_T) - difference_T).clamp(-K3_LIMIT, K3_LIMIT)
    assert_never(estimator)


def _required(column: Tensor | None, name: str, loss: str) -> Tensor:
    if column is None:
        raise ValueError(f"objective.auxiliary.{loss} is on but the tokens have no {name}; it must be computed first")
    return column
