"""Advantages from the rewards of a step. Pure Python in double precision: the same on every rank and in any order.

A group is the responses to one prompt. The result depends only on which rewards share a group, never on where in the
step they stand (sums are exactly rounded). A group whose rewards are all equal, a group of one included, has advantage
exactly 0 wherever the method looks at that group alone. What a method remembers lies in `AdvantageHistory`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, assert_never

from megarl.config.advantage import (
    Advantage,
    DrGrpo,
    FocalAdvantage,
    Grpo,
    PerplexityBonus,
    QuantileAdvantage,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
    SmoothedAdvantage,
)
from megarl.objective.schedules import decimal
from megarl.records import Floats

_SMALLEST_VARIANCE = 1e-8
_ROUNDING = 1e-12
"""Of rewards that are equal, relative to the largest: they are sums of a few doubles."""
Given = TypeVar("Given", int, str)


class AdvantageHistory:
    """Reward statistics of every problem over its visits, for the smoothed advantage; empty for all other methods.

    Rows of a data set that state the same problem share them: its name is `Prompt.identity`.

    The recursion is that of DCPO's authors: visits weigh alike; mean m_i = m_(i-1) + d / i and variance
    v_i = ((i-1) v_(i-1) + s^2 + (i-1) d^2 / i) / i, where d = mean of the new group - m_(i-1) and s is its standard
    deviation with Bessel's correction.
    """

    def __init__(self) -> None:
        self._problems: dict[str, tuple[int, float, float]] = {}

    def visit(self, problem: str, *, mean: float, std: float) -> tuple[int, float, float]:
        """Count a group of the problem in; returns its visits, and mean and standard deviation over all of them."""
        visits, old_mean, variance = self._problems.get(problem, (0, mean, 0.0))
        visits, change = visits + 1, mean - old_mean
        before = (visits - 1) / visits
        variance = before * variance + (std * std + before * change * change) / visits
        new_mean = old_mean + change / visits
        self._problems[problem] = (visits, new_mean, variance)
        return visits, new_mean, math.sqrt(variance)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: visits, mean and variance by problem."""
        return {problem: list(numbers) for problem, numbers in self._problems.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s numbers, exactly. ValueError where a problem has others."""
        for problem, numbers in state.items():
            if not isinstance(numbers, Sequence) or len(numbers) != 3:
                raise ValueError(
                    f"history state of problem {problem!r} is {numbers!r}, expected visits, mean and variance"
                )
        self._problems = {
            problem: (int(visits), float(mean), float(variance)) for problem, (visits, mean, variance) in state.items()
        }


def compute_advantages(
    config: Advantage,
    rewards: Sequence[float],
    group_ids: Sequence[int],
    *,
    response_lengths: Sequence[int] | None = None,
    problems: Sequence[str] | None = None,
    history: AdvantageHistory | None = None,
    focal_power: float | None = None,
) -> list[float]:
    """One advantage per response, in the order given. Sources are with each method in `config.advantage`.

    dr_grpo: R - mean. grpo: (R - mean) / (std + eps), std with Bessel's correction. rloo: R - mean of the others.
    quantile: (R - b) / (std + eps), b the smallest reward at or below which the share K of the group lies (always one
    of its rewards, so that an advantage at b is exactly 0); 0 without spread. reinforce_pp: (R - mean) / sqrt(max(var,
    1e-8)) over all response tokens, so each response counts `response_lengths` times; variance without Bessel's
    correction, as in NeMo-RL. reinforce_pp_baseline: the same of R - group mean. smoothed: with i visits of the prompt
    and A, A' standardised by this group and by the `history`, this group included, the smaller in size of
    A' / i + (i - 1) A / i and A / i + (i - 1) A' / i. focal: (1 - p)^(focal_power - 1) (R - mean), where p, the mean
    kept within 0 and 1, stands for the share that solves the problem.

    `group_ids` says which responses share a group. smoothed adds every group to `history`, in the order in which the
    groups first appear; `problems` (one per response) are the names in it.

    Raises:
        ValueError: lengths that differ, a reward that is not finite, or an argument the method needs is absent.
    """
    _check_arguments(rewards, group_ids)
    groups = _members(group_ids)
    match config:
        case ReinforcePlusPlus():
            return _whiten(rewards, _given(response_lengths, "response_lengths", config, len(rewards)))
        case ReinforcePlusPlusBaseline():
            lengths = _given(response_lengths, "response_lengths", config, len(rewards))
            return _whiten(_by_group(DrGrpo(), rewards, groups), lengths)
        case SmoothedAdvantage(eps=eps):
            if history is None:
                raise ValueError(f"{config.method} needs a history; keep one AdvantageHistory for the whole run")
            names = _given(problems, "problems", config, len(rewards))
            return _smoothed(rewards, groups, names, history=history, eps=eps)
        case FocalAdvantage():
            if focal_power is None:
                raise ValueError(f"{config.method} needs focal_power; keep one AdvantageAverages for the whole run")
            return _focal(rewards, groups, power=focal_power)
        case _:
            return _by_group(config, rewards, groups)


def compute_perplexity_bonus(config: PerplexityBonus, reward: float, behavior_logp: Floats, *, omega: float) -> float:
    """CDE's actor bonus on one response's reward: omega min(|R| / kappa, alpha B), B = -mean log p (arXiv 2509.09675).

    B is 0 for an empty response; `omega` is `schedules.perplexity_omega` of the step.
    """
    surprise = -math.fsum(behavior_logp.tolist()) / len(behavior_logp) if len(behavior_logp) else 0.0
    return omega * min(abs(reward) / config.kappa, config.alpha * surprise)


def _check_arguments(rewards: Sequence[float], group_ids: Sequence[int]) -> None:
    if len(rewards) != len(group_ids):
        raise ValueError(f"{len(rewards)} rewards but {len(group_ids)} group ids; give one group id per response")
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(
                f"reward {reward} of response {index} (group {group_ids[index]}) is not finite; "
                "the verifier must return a finite number"
            )


def _given(values: Sequence[Given] | None, name: str, config: Advantage, count: int) -> Sequence[Given]:
    if values is None or len(values) != count:
        found = "none" if values is None else f"{len(values)}"
        raise ValueError(f"{config.method} needs {name}, one per response: expected {count}, found {found}")
    return values


def _members(group_ids: Sequence[int]) -> list[list[int]]:
    """Positions of each group's responses, groups in the order in which they first appear."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(group_ids):
        members[group].append(index)
    return list(members.values())


def _by_group(
    config: DrGrpo | Grpo | Rloo | QuantileAdvantage, rewards: Sequence[float], groups: Iterable[Sequence[int]]
) -> list[float]:
    advantages = [0.0] * len(rewards)
    for indices in groups:
        for index, advantage in zip(indices, _group_advantages(config, [rewards[i] for i in indices]), strict=True):
            advantages[index] = advantage
    return advantages


def _focal(rewards: Sequence[float], groups: Iterable[Sequence[int]], *, power: float) -> list[float]:
    advantages = _by_group(DrGrpo(), rewards, groups)
    for indices in groups:
        mean = math.fsum(rewards[i] for i in indices) / len(indices)
        for index in indices:
            advantages[index] *= (1.0 - min(max(mean, 0.0), 1.0)) ** (power - 1.0)
    return advantages


def _group_advantages(config: DrGrpo | Grpo | Rloo | QuantileAdvantage, rewards: list[float]) -> list[float]:
    mean, std = _mean_and_std(rewards)
    if not _has_spread(rewards):
        # Not left to the arithmetic: a mean off by one ulp, divided by a standard deviation of one ulp, would be ±1.
        return [0.0] * len(rewards)
    match config:
        case DrGrpo():
            return [reward - mean for reward in rewards]
        case Grpo(eps=eps):
            return [(reward - mean) / (std + eps) for reward in rewards]
        case Rloo():
            return [(reward - mean) * len(rewards) / (len(rewards) - 1) for reward in rewards]
        case QuantileAdvantage(quantile=quantile, eps=eps):
            baseline = sorted(rewards)[math.ceil(decimal(quantile) * len(rewards)) - 1]
            return [(reward - baseline) / (std + eps) for reward in rewards]
    assert_never(config)


def _mean_and_std(rewards: Sequence[float]) -> tuple[float, float]:
    """With Bessel's correction; without spread exactly (the reward, 0)."""
    if not _has_spread(rewards):
        return rewards[0], 0.0
    mean = math.fsum(rewards) / len(rewards)
    return mean, math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))


def _has_spread(rewards: Sequence[float]) -> bool:
    """Whether they differ by more than rounding: of 0.1 + 0.2 and 0.3 standardisation would make ±1."""
    return max(rewards) - min(rewards) > _ROUNDING * max(map(abs, rewards))


def _whiten(values: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Centred and scaled over tokens; 0 for all where no token differs from another."""
    of_tokens = [value for value, length in zip(values, lengths, strict=True) if length]
    if not of_tokens or not _has_spread(of_tokens):
        return [0.0] * len(values)
    num_tokens = sum(lengths)
    mean = math.fsum(value * length for value, length in zip(values, lengths, strict=True)) / num_tokens
    squares = math.fsum((value - mean) ** 2 * length for value, length in zip(values, lengths, strict=True))
    std = math.sqrt(max(squares / num_tokens, _SMALLEST_VARIANCE))
    return [(value - mean) / std for value in values]


def _smoothed(
    rewards: Sequence[float],
    groups: Iterable[Sequence[int]],
    problems: Sequence[str],
    *,
    history: AdvantageHistory,
    eps: float,
) -> list[float]:
    advantages = [0.0] * len(rewards)
    for indices in groups:
        mean, std = _mean_and_std([rewards[i] for i in indices])
        visits, total_mean, total_std = history.visit(problems[indices[0]], mean=mean, std=std)
        for index in indices:
            new = (rewards[index] - mean) / (std + eps) if std else 0.0
            total = (rewards[index] - total_mean) / (total_std + eps) if total_std else 0.0
            mixed = (total + (visits - 1) * new) / visits, (new + (visits - 1) * total) / visits
            advantages[index] = min(mixed, key=abs)
    return advantages
