"""Many updates of a linear softmax with shared features on random rewards: does the first order add up to a trend?

logits of prompt s = features_s @ weights, so a prompt's ratio drifts because other prompts' samples move the weights.
Rewards are coin flips. The control masks the same kind of tokens (ratio outside the bounds) by an independent coin
instead of by the sign of A: about as many tokens are dropped and the steps are as noisy, but the drop has no bias.
Only the difference to the control is the clip's doing: any finite step loses entropy, without a clip too.

What is found: clip-low raises entropy against its control. Clip-high's effect here is small and of no fixed sign; that
it lowers entropy in language models, and outweighs clip-low at 0.2/0.2, is an observation there, not a theorem.

R = seeds trained side by side, S = prompts, D = features, V = actions, N = samples of a mini-batch. float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.config.theory import MultiStepConfig
from megarl.theory.tabular import Bounds, entropy, expected_q


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One setting trained with every seed."""

    entropy: Tensor
    """[rollouts + 1, R]: mean over prompts after each rollout, divided by the initial one."""
    low_term: float
    """CL = mean[r 1_X (E[Q] - Q)] over all sampled tokens of all updates."""
    high_term: float
    """CH, the same of Y."""
    dropped: float
    """Share of tokens whose gradient was dropped."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The samples of one rollout; [R, S * G] each, in the order of the mini-batches."""

    prompt: Tensor
    action: Tensor
    old: Tensor
    """Probability under the policy that sampled."""
    advantage: Tensor
    coin: Tensor


def train(
    config: MultiStepConfig,
    bounds: Bounds,
    *,
    control: bool,
    seed: int,
    on_rollout: Callable[[], None] = lambda: None,
) -> Trajectory:
    """Train with the clip, or with its matched control. Equal seeds give equal prompts, first samples and rewards."""
    generator = torch.Generator().manual_seed(seed)
    features = _normal((config.seeds, config.prompts, config.features), generator)
    weights = config.weight_scale * _normal((config.seeds, config.features, config.vocabulary), generator)
    optimizer = _Optimizer(config, weights)
    initial = entropy((features @ weights).softmax(-1)).mean(-1)
    entropies, sums = [torch.ones_like(initial)], torch.zeros(3, dtype=torch.float64)
    for _ in range(config.rollouts):
        batch = _sample(config, (features @ weights).softmax(-1), generator)
        size = config.prompts * config.group // config.updates_per_rollout
        for start in range(0, config.prompts * config.group, size):
            part = _Batch(*(getattr(batch, name)[:, start : start + size] for name in _Batch.__slots__))
            gradient, totals = _gradient(features, weights, part, bounds, control=control)
            weights = optimizer.ascend(weights, gradient)
            sums += totals
        entropies.append(entropy((features @ weights).softmax(-1)).mean(-1) / initial)
        on_rollout()
    low_term, high_term, dropped = (sums / max(1, config.rollouts * config.updates_per_rollout)).tolist()
    return Trajectory(entropy=torch.stack(entropies), low_term=low_term, high_term=high_term, dropped=dropped)


class _Optimizer:
    """Gradient ascent, or Adam with its usual betas and no decay."""

    def __init__(self, config: MultiStepConfig, weights: Tensor) -> None:
        self._rate, self._adam = config.learning_rate, config.optimizer == "adam"
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._updates = 0

    def ascend(self, weights: Tensor, gradient: Tensor) -> Tensor:
        if not self._adam:
            return weights + self._rate * gradient
        self._updates += 1
        self._first.mul_(0.9).add_(gradient, alpha=0.1)
        self._second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        first = self._first / (1 - 0.9**self._updates)
        second = self._second / (1 - 0.999**self._updates)
        return weights + self._rate * first / (second.sqrt() + 1e-8)


def _sample(config: MultiStepConfig, policy: Tensor, generator: torch.Generator) -> _Batch:
    """G actions per prompt with coin-flip rewards, shuffled over the whole rollout."""
    seeds, prompts, vocabulary = policy.shape
    samples = prompts * config.group
    flat = policy.reshape(-1, vocabulary)
    actions = torch.multinomial(flat, config.group, replacement=True, generator=generator)
    old = flat.gather(-1, actions).view(seeds, samples)
    rewards = (torch.rand(seeds, prompts, config.group, generator=generator) < 0.5).to(torch.float64)
    advantage = (rewards - rewards.mean(-1, keepdim=True)).view(seeds, samples)
    coin = torch.rand(seeds, samples, generator=generator) < 0.5
    order = torch.rand(seeds, samples, generator=generator).argsort(-1)
    columns = (actions.view(seeds, samples), old, advantage, coin)
    return _Batch(order // config.group, *(column.gather(-1, order) for column in columns))


def _gradient(
    features: Tensor, weights: Tensor, batch: _Batch, bounds: Bounds, *, control: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of the clipped objective [R, D, V], (CL, CH, share dropped) of this mini-batch)."""
    chosen = features.gather(1, batch.prompt[..., None].expand(-1, -1, features.shape[-1]))
    policy = (chosen @ weights).softmax(-1)
    action = batch.action[..., None]
    probability = policy.gather(-1, action)[..., 0]
    ratio = probability / batch.old
    low_set, high_set = ratio < 1 - bounds.low, ratio > 1 + bounds.high
    if control:
        drop = (low_set | high_set) & batch.coin
    else:
        drop = (low_set & (batch.advantage < 0)) | (high_set & (batch.advantage > 0))
    coefficient = torch.where(drop, 0.0, ratio * batch.advantage) / ratio.shape[-1]
    residual = -policy * coefficient[..., None]
    residual.scatter_add_(-1, action, coefficient[..., None])
    gap = expected_q(policy) - probability * (probability.log() + entropy(policy))
    means = [(ratio * low_set * gap).mean(), (ratio * high_set * gap).mean(), drop.to(torch.float64).mean()]
    return chosen.transpose(1, 2) @ residual, torch.stack(means)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
