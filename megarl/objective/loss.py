"""The token loss: clipped policy gradient plus KL to a reference.

T = packed response tokens of one micro-batch, nothing else: prompts and padding never arrive, so there is no mask.
All tensors are float32 [T] (float64 works). Pure: no process group, no logging, no host synchronisation. T may be 0.
loss = sum of weight_T * token loss; the weights already hold the one, global normaliser (`aggregation.py`).
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig

LOG_RATIO_LIMIT = 20.0
"""|log ratio| is clamped to this before exp, as verl does: exp(20) = 4.9e8 cannot overflow, and beyond it the token
has no gradient."""
K3_LIMIT = 10.0
"""The k3 estimate is clamped to ±this, as verl does; beyond it the token has no KL gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What the loss reads of each response token."""

    logp_T: Tensor
    """log p under the current weights; carries the gradient."""
    entropy_T: Tensor
    """Entropy of the current policy at the token's position, in nats."""
    old_logp_T: Tensor
    """log p before this batch's first update: the anchor of the ratio. No gradient."""
    advantage_T: Tensor
    weight_T: Tensor
    """Aggregation weight (`sequence_weight`). No gradient."""
    ref_logp_T: Tensor | None = None
    """log p under the frozen reference; required where kl.coefficient > 0."""

    def __post_init__(self) -> None:
        expected = self.logp_T.shape
        for name in ("entropy_T", "old_logp_T", "advantage_T", "weight_T", "ref_logp_T"):
            value = getattr(self, name)
            if value is not None and value.shape != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, logp_T {tuple(expected)}; one entry per response token"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """The loss of one micro-batch and its parts."""

    loss: Tensor
    """Scalar with gradient: sum of weight * (policy + kl coefficient * kl). Add over micro-batches and ranks."""
    policy_T: Tensor
    """Unweighted clipped policy loss, detached."""
    kl_T: Tensor | None
    """Unweighted KL estimate without its coefficient, detached; None without a reference."""


def compute_token_loss(config: ObjectiveConfig, inputs: LossInputs) -> TokenLoss:
    """The configured loss of one micro-batch.

    Raises:
        ValueError: kl.coefficient > 0 and no ref_logp_T.
    """
    policy_T = clipped_policy_loss(
        logp_T=inputs.logp_T,
        old_logp_T=inputs.old_logp_T,
        advantage_T=inputs.advantage_T,
        low=config.clip.low,
        high=config.clip.high,
        dual=config.clip.dual,
    )
    loss = (inputs.weight_T * policy_T).sum()
    kl_T = None
    if inputs.ref_logp_T is not None:
        kl_T = kl_estimate(inputs.logp_T, inputs.ref_logp_T, estimator=config.kl.estimator)
        if config.kl.coefficient > 0:
            loss = loss + config.kl.coefficient * (inputs.weight_T * kl_T).sum()
        kl_T = kl_T.detach()
    elif config.kl.coefficient > 0:
        raise ValueError(
            f"objective.kl.coefficient is {config.kl.coefficient} but no ref_logp_T was given; "
            "compute the reference log-probs first or set the coefficient to 0"
        )
    return TokenLoss(loss=loss, policy_T=policy_T.detach(), kl_T=kl_T)


def policy_ratio(logp_T: Tensor, old_logp_T: Tensor) -> Tensor:
    """r = exp(logp - old_logp), log ratio clamped to ±LOG_RATIO_LIMIT; d r / d logp = r inside, 0 outside."""
    return (logp_T - old_logp_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_policy_loss(
    *, logp_T: Tensor, old_logp_T: Tensor, advantage_T: Tensor, low: float, high: float, dual: float
) -> Tensor:
    """-min(r A, clip(r, 1-low, 1+high) A) per token, and at most -dual * A where A < 0 (arXiv 1912.09729).

    low = 1, high = inf, dual = inf each turn their side off. The gradient with respect to logp is exactly
    -r A where r is inside its bound (ties included) and 0 where it is clipped:
    A > 0 is clipped above 1+high; A < 0 below 1-low and above dual.
    """
    ratio_T = policy_ratio(logp_T, old_logp_T)
    # A factors out: A min(r, 1+high) for A > 0, A max(r, 1-low) for A < 0. `clamp` with an infinite bound is the
    # identity with gradient 1, so nothing is ever inf * 0, and it passes the gradient on at ties.
    bounded_T = torch.where(advantage_T > 0, ratio_T.clamp(max=1.0 + high), ratio_T.clamp(min=1.0 - low, max=dual))
    return -advantage_T * bounded_T


def kl_estimate(logp_T: Tensor, ref_logp_T: Tensor, *, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL divergence", 2020).

    With d = ref - logp: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1, clamped as verl does (d to ±20, k3 to ±10).
    As a loss on tokens of the policy's own samples, k1 has gradient grad log p, whose expectation is 0: it adds
    noise and no pull to the reference, so use it to measure. k2 has the gradient of KL(policy || reference) in
    expectation; k3 that of KL(reference || policy). All three are detached from ref_logp_T by its construction.
    """
    match estimator:
        case "k1":
            return logp_T - ref_logp_T
        case "k2":
            return 0.5 * (logp_T - ref_logp_T).square()
        case "k3":
            difference_T = (ref_logp_T - logp_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            return (torch.expm1(difference_T) - difference_T).clamp(-K3_LIMIT, K3_LIMIT)
    assert_never(estimator)
