"""Closed-loop clipping: bounds chosen per mini-batch so that the update changes the entropy as a target asks.

A token that its bound does not drop adds b = -c (Q - N) to the update's entropy budget (`accounting`), one that it
drops adds nothing. One knob x in [0, 1] moves both bounds (`knob_bounds`), so the budget B(x), the sum of b over what
is kept, is constant but where x passes a token's ratio. It rises with x throughout where every b that clip-low can drop
is at most 0 and every b that clip-high can drop at least 0: the typical case of arXiv 2509.26114, no theorem.

`search_knob` looks for B(x) = wanted by intervals: all tokens of all ranks are summed exactly at 17 places, and where
the sum passes the wanted one the interval is divided again, until one token is left in it. Where B is monotone that is
the best of all bounds in the range; where it is not it is a place where B passes the wanted value, or, if no place was
seen, the closest one seen. No rank sees another's tokens. T = response tokens of this rank's share.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from megarl.config.auxiliary import AuxiliaryConfig
from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import NoClip
from megarl.objective.bounds import clipped_sides, token_bounds
from megarl.objective.exact_sums import exact_sums
from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.objective.loss import compute_token_loss
from megarl.objective.ratio import log_ratio
from megarl.objective.share import Share
from megarl.objective.tokens import Choices

_PARTS = 16
"""Intervals of a round. The knob is a multiple of 1/16, 1/256, ...: of few digits, and away from the tokens' ratios."""
_ROUNDS = 5
"""At most: 2^-20 of the range is less than what layouts differ by in float32."""


def search_knob(
    objective: ObjectiveConfig, clip: ClosedLoopClip | ClosedLoopFlexEcClip, share: Share, so_far: Choices
) -> LoopChoice:
    """The knob for this mini-batch, the same on every rank and under every layout; four to twelve collectives.

    `so_far` has the weights of the rules that read no bounds. It stays where the last update left it while its budget
    is within `clip.loop.band` of what is wanted, and where no bound in the range drops a token: so in a step's first
    update.

    Raises:
        ValueError: `share.controls` has no numbers of the loop.
    """
    loop = _controls_of(share)
    budget_T = open_budget(objective, share, so_far)
    drift_T = share.tokens.entropy_T.double() - share.tokens.old_entropy_T.double()
    size, drift = exact_sums([budget_T.abs(), drift_T], share.reduce)
    entropy = loop.entropy + drift / share.num_tokens
    wanted = wanted_share(clip, loop, entropy)
    search = _Search(objective, share, so_far, budget_T, wanted=wanted * size, before=loop.knob)
    knob, predicted = search.run(band=clip.loop.band * size)
    return LoopChoice(knob=knob, wanted=wanted, predicted=predicted / size if size else 0.0, size=size, entropy=entropy)


def wanted_share(clip: ClosedLoopClip | ClosedLoopFlexEcClip, loop: LoopControls, entropy: float) -> float:
    """The share of its size that the budget is to have, -1 to 1, where the entropy is `entropy`."""
    error = (loop.target - entropy) / loop.target
    return min(max(clip.loop.gain * error + loop.offset, -1.0), 1.0)


def open_budget(objective: ObjectiveConfig, share: Share, so_far: Choices) -> Tensor:
    """b of every token if no bound drops it, float64 [T], with the weights of `so_far`: from the loss itself."""
    unbounded = objective.model_copy(update={"clip": NoClip(kind="none"), "auxiliary": AuxiliaryConfig()})
    loss = compute_token_loss(unbounded, share.controls, share.tokens, so_far)
    return loss.coefficient_T.double() * (share.tokens.expected_q_T.double() - share.tokens.q_T)


class _Search:
    """B at knobs, and which interval to divide."""

    def __init__(
        self,
        objective: ObjectiveConfig,
        share: Share,
        so_far: Choices,
        budget_T: Tensor,
        *,
        wanted: float,
        before: float,
    ) -> None:
        self._objective, self._share, self._so_far, self._budget_T = objective, share, so_far, budget_T
        self._wanted, self._before = wanted, before
        self._ratio_T = log_ratio(objective.ratio, share.tokens).exp()
        self._advantage_T = share.advantage_T.to(self._ratio_T.dtype)
        self._seen: dict[float, float] = {}

    def run(self, *, band: float) -> tuple[float, float]:
        """(the knob, B there)."""
        first, last = 0.0, 1.0
        for number in range(_ROUNDS):
            places = [first + (last - first) * part / _PARTS for part in range(_PARTS + 1)]
            moved = self._look(places)
            if number == 0:
                stays = abs(self._seen[self._before] - self._wanted) <= band
                if stays or not sum(moved):
                    return self._before, self._seen[self._before]
            passing = self._passing(places, moved)
            if passing is None:
                break
            first, last = places[passing], places[passing + 1]
            if moved[passing] <= 1:
                break
        best = min(self._seen, key=lambda knob: (abs(self._seen[knob] - self._wanted), abs(knob - self._before), knob))
        return best, self._seen[best]

    def _look(self, places: Sequence[float]) -> list[int]:
        """Note B at the places (and at the knob before, in the first round); how many tokens each interval moves."""
        asked = [*places, *([] if self._seen else [self._before])]
        kept = [self._kept(knob) for knob in asked]
        totals = exact_sums(_Columns(self._budget_T, kept, len(places)), self._share.reduce)
        self._seen |= dict(zip(asked, totals, strict=False))
        return [round(count) for count in totals[len(asked) :]]

    def _passing(self, places: Sequence[float], moved: Sequence[int]) -> int | None:
        """The interval nearest to the knob before in which B passes what is wanted; None where it does in none."""
        budgets = [self._seen[place] for place in places]
        passing = [
            at
            for at, (one, other) in enumerate(pairwise(budgets))
            if moved[at] and min(one, other) <= self._wanted <= max(one, other)
        ]
        return min(passing, key=lambda at: (self._distance(places[at], places[at + 1]), at), default=None)

    def _distance(self, first: float, last: float) -> float:
        return max(first - self._before, self._before - last, 0.0)

    def _kept(self, knob: float) -> Tensor:
        """bool [T]: not beyond the bounds that the update itself would have at this knob."""
        share, at = self._share, LoopChoice(knob=knob, wanted=0.0, predicted=0.0, size=0.0, entropy=0.0)
        bounds = Choices(weight_T=self._so_far.weight_T, rule_T=self._so_far.rule_T, loop=at)
        objective = self._objective
        low_T, high_T = token_bounds(objective.clip, share.tokens, share.controls, bounds, ratio=objective.ratio)
        return clipped_sides(self._ratio_T, self._advantage_T, low_T, high_T) == 0


class _Columns:
    """The columns to be summed: the budget kept at every place, then what differs between neighbours."""

    def __init__(self, budget_T: Tensor, kept: Sequence[Tensor], num_places: int) -> None:
        self._budget_T, self._kept, self._num_places = budget_T, kept, num_places

    def __iter__(self) -> Iterator[Tensor]:
        for kept_T in self._kept:
            yield torch.where(kept_T, self._budget_T, 0.0)
        for one_T, other_T in pairwise(self._kept[: self._num_places]):
            yield (one_T != other_T).double()


def _controls_of(share: Share) -> LoopControls:
    if share.controls.loop is None:
        raise ValueError(
            "objective.clip steers by the entropy, but the step's controls have no numbers of its loop; they come from "
            "ControllerState.begin_step"
        )
    return share.controls.loop
