"""Named policies for which the signs are known by hand: the typical case, and the ones where intuition fails."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.theory.tabular import Bounds, clip_sets, entropy
from megarl.theory.theorems import (
    natural_gradient_step,
    natural_gradient_terms,
    policy_gradient_step,
    policy_gradient_terms,
)

OFF = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two policies and what they show."""

    name: str
    policy: tuple[float, ...]
    old: tuple[float, ...]
    bounds: Bounds
    meaning: str

    @property
    def policy_V(self) -> Tensor:
        return torch.tensor(self.policy, dtype=torch.float64)

    @property
    def old_V(self) -> Tensor:
        return torch.tensor(self.old, dtype=torch.float64)


CASES: tuple[Case, ...] = (
    Case(
        name="rare token falls",
        policy=(0.60, 0.25, 0.08, 0.07),
        old=(0.62, 0.25, 0.11, 0.02),
        bounds=Bounds(low=0.2, high=OFF),
        meaning="the usual case: clip-low stops the fall of a rare token and raises entropy",
    ),
    Case(
        name="rare ones fall and rise",
        policy=(0.60, 0.25, 0.08, 0.07),
        old=(0.62, 0.25, 0.11, 0.02),
        bounds=Bounds(low=0.2, high=0.2),
        meaning="clip-high stops the rise of a rare token and takes back most of the gain",
    ),
    Case(
        name="dominant token falls",
        policy=(0.7, 0.15, 0.15),
        old=(0.9, 0.05, 0.05),
        bounds=Bounds(low=0.2, high=OFF),
        meaning="counterexample: clip-low protects the dominant token, which was falling: entropy falls",
    ),
    Case(
        name="dominant token rises",
        policy=(0.7, 0.15, 0.15),
        old=(0.5, 0.25, 0.25),
        bounds=Bounds(low=1.0, high=0.2),
        meaning="counterexample: clip-high holds the dominant token back, which was rising: entropy rises",
    ),
    Case(
        name="the theorems disagree",
        policy=(0.4572, 0.0933, 0.3757, 0.0738),
        old=(0.4000, 0.0700, 0.4800, 0.0500),
        bounds=Bounds(low=0.2, high=OFF),
        meaning="one protected token of middling probability: up under policy gradient, down under natural gradient",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """A case with its numbers; entropy changes in nats."""

    name: str
    meaning: str
    low_set: list[int]
    high_set: list[int]
    pg_low: float
    pg_high: float
    ng_low: float
    ng_high: float
    pg_predicted: float
    pg_exact: float
    ng_predicted: float
    ng_exact: float


def work_case(case: Case, delta: float) -> Worked:
    """Predicted and exact entropy change of one step of size delta = eta c w."""
    policy, old, bounds = case.policy_V, case.old_V, case.bounds
    low_set, high_set = clip_sets(policy, old, bounds)
    pg, ng = policy_gradient_terms(policy, old, bounds), natural_gradient_terms(policy, old, bounds)
    logits, before = policy.log(), entropy(policy)
    return Worked(
        name=case.name,
        meaning=case.meaning,
        low_set=low_set.nonzero().flatten().tolist(),
        high_set=high_set.nonzero().flatten().tolist(),
        pg_low=pg.low.item(),
        pg_high=pg.high.item(),
        ng_low=ng.low.item(),
        ng_high=ng.high.item(),
        pg_predicted=pg.change(delta).item(),
        pg_exact=(entropy(policy_gradient_step(logits, old, bounds, delta)) - before).item(),
        ng_predicted=ng.change(delta).item(),
        ng_exact=(entropy(natural_gradient_step(logits, old, bounds, delta)) - before).item(),
    )
