"""The float64 reference for every core: textbook formulas on the whole vocabulary, plain autograd."""

import torch
from torch import Tensor


def reference_distribution(
    logits_TV: Tensor, target_T: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the target, entropy H and N = sum p^2 (log p + H), in float64, differentiable (N too).

    Logits of -inf have probability 0 and add nothing to H and N.
    """
    scale = temperature[:, None].double() if isinstance(temperature, Tensor) else temperature
    logp_TV = torch.log_softmax(logits_TV.double() / scale, dim=1)
    logp_T = logp_TV.gather(1, target_T[:, None])[:, 0]
    probability_TV = logp_TV.exp()
    finite_TV = torch.where(torch.isfinite(logp_TV), logp_TV, 0.0)
    entropy_T = -(probability_TV * finite_TV).sum(1)
    expected_q_T = (probability_TV.square() * (finite_TV + entropy_T[:, None])).sum(1)
    return logp_T, entropy_T, expected_q_T


def reference_gradient(
    logits_TV: Tensor, target_T: Tensor, weights_2T: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """Float64 gradient, in the logits, of sum(weights[0] * logp + weights[1] * entropy)."""
    leaf_TV = logits_TV.detach().double().requires_grad_()
    logp_T, entropy_T, _ = reference_distribution(leaf_TV, target_T, temperature)
    (weights_2T[0].double() * logp_T + weights_2T[1].double() * entropy_T).sum().backward()
    assert leaf_TV.grad is not None
    return leaf_TV.grad


def logits_case(*, tokens: int = 11, columns: int = 37, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits [tokens, columns] and int64 targets [tokens], the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    logits_TV = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) * spread
    return logits_TV, torch.randint(0, columns, (tokens,), generator=generator)


def upstream_weights(tokens: int) -> Tensor:
    """[2, tokens] float32 gradients of logp and entropy, of both signs."""
    return torch.randn(2, tokens, generator=torch.Generator().manual_seed(1))


def linear_case(
    *, tokens: int = 11, columns: int = 37, hidden_size: int = 16, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [tokens, hidden size], output weight [columns, hidden size], int64 targets [tokens]."""
    generator = torch.Generator().manual_seed(seed)
    hidden_TH = torch.randn(tokens, hidden_size, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(columns, hidden_size, generator=generator, dtype=torch.float64) * 0.7
    return hidden_TH.to(dtype), weight_VH.to(dtype), torch.randint(0, columns, (tokens,), generator=generator)


def reference_linear_gradients(
    hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor, weights_2T: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Float64 gradients, in hidden states and weight, of sum(weights[0] * logp + weights[1] * entropy)."""
    gradient_TV = reference_gradient(hidden_TH.double() @ weight_VH.double().t(), target_T, weights_2T, temperature)
    return gradient_TV @ weight_VH.double(), gradient_TV.t() @ hidden_TH.double()
