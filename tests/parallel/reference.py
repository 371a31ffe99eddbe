"""The float64 reference for the vocabulary-parallel core: textbook formulas on the whole vocabulary, plain autograd."""

import torch
from torch import Tensor


def reference_logp_entropy(
    logits_TV: Tensor, target_T: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-prob of the target and entropy in float64; -inf logits have probability 0 and add nothing to the entropy."""
    scale = temperature[:, None].double() if isinstance(temperature, Tensor) else temperature
    logp_TV = torch.log_softmax(logits_TV.double() / scale, dim=1)
    logp_T = logp_TV.gather(1, target_T[:, None])[:, 0]
    finite_TV = torch.where(torch.isfinite(logp_TV), logp_TV, 0.0)
    return logp_T, -(logp_TV.exp() * finite_TV).sum(1)
