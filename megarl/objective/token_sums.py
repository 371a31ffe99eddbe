"""The sums that a mini-batch's tokens leave, and the metrics that are ratios of them.

Sums, counts and maxima merge exactly: a metric is a ratio of two merged sums, so it does not depend on micro-batches,
packing or ranks, and a mean of means cannot happen. `accounting` makes the sums and says what counts as what.
N = len(SUM_NAMES), M = len(MAX_NAMES).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce as fold

import torch
from torch import Tensor

from megarl.config.facts import rules_that
from megarl.config.objective import ObjectiveConfig
from megarl.rules import Rule
from megarl.telemetry.metrics import Mean, Metrics, Values, declared

CLIPPED = fold(Rule.__or__, (Rule[name.upper()] for name in rules_that("clips")))
"""The rules that are clipping."""
MASKS = fold(Rule.__or__, (Rule[name.upper()] for name in rules_that("masks")))
"""The rules that set a token's weight to 0."""
QUINTILES = (1, 2, 3, 4, 5)
"""Fifths of the mini-batch's tokens by entropy; 5 is the most uncertain."""

_COUNTED_ELSEWHERE = Rule.CLIP_LOW | Rule.CLIP_HIGH | Rule.DUAL | Rule.SATURATED
"""Their shares are clip_ratio/low_mean, high_mean, dual_mean and actor/ratio_saturated_frac."""
COUNTED_RULES = {rule: str(rule.name).lower() for rule in Rule if not rule & _COUNTED_ELSEWHERE}
"""Rules with a sum of their own, rule_<name>."""
_THEOREM_RATIOS = (
    ("contribution", "gap", "tokens"),
    ("contribution_weighted", "gap_weighted", "updates"),
    ("difference", "gap", "mass"),
    ("surprisal_contribution", "surprisal", "tokens"),
    ("surprisal", "surprisal", "mass"),
)
"""Of each side of the clip: metric, numerator, denominator."""
_RATIOS: dict[str, tuple[str, str]] = {
    "actor/entropy": ("entropy", "tokens"),
    "actor/entropy_response_mean": ("response_entropy", "responses"),
    "actor/logp": ("logp", "tokens"),
    "actor/pg_loss": ("policy_loss", "updates"),
    "actor/aux_loss": ("auxiliary_loss", "updates"),
    "actor/loss": ("loss", "updates"),
    "actor/kl_loss": ("kl", "kl_tokens"),
    "actor/ppo_kl": ("old_minus_current", "tokens"),
    "actor/ratio_mean": ("ratio", "tokens"),
    "actor/ratio_saturated_frac": ("saturated", "tokens"),
    "actor/pg_clipfrac": ("clipped", "tokens"),
    "actor/weight_mean": ("weight", "tokens"),
    "actor/masked_frac": ("masked", "tokens"),
    "actor/advantage_positive_frac": ("positive", "tokens"),
    "actor/advantage_negative_frac": ("negative", "tokens"),
    "clip_ratio/low_mean": ("clipped_low", "tokens"),
    "clip_ratio/high_mean": ("clipped_high", "tokens"),
    "clip_ratio/dual_mean": ("clipped_dual", "tokens"),
    "clip_ratio/low_effective": ("effective_low", "tokens"),
    "clip_ratio/high_effective": ("effective_high", "tokens"),
    "clip_ratio/region_mean": ("clipped_region", "tokens"),
    "clip_ratio/low_of_negative": ("clipped_low", "negative"),
    "clip_ratio/high_of_positive": ("clipped_high", "positive"),
    **{
        f"clip_ratio/{side}_q{q}": (f"clipped_{side}_q{q}", f"tokens_q{q}")
        for side in ("low", "high")
        for q in QUINTILES
    },
    "clip_bound/low_mean": ("low_distance", "low_bounded"),
    "clip_bound/high_mean": ("high_distance", "high_bounded"),
    **{f"matched/{side}_beyond": (f"beyond_{side}", "tokens") for side in ("low", "high")},
    **{f"matched/{side}_dropped": (f"matched_{side}", "tokens") for side in ("low", "high")},
    **{f"rule/{name}_frac": (f"rule_{name}", "tokens") for name in COUNTED_RULES.values()},
    **{
        f"entropy/clip_{side}_{name}": (f"{side}_{above}", f"{side}_mass" if below == "mass" else below)
        for name, above, below in _THEOREM_RATIOS
        for side in ("low", "high", "dual")
    },
    **{f"entropy/region_e{i}": (f"region_e{i}", "tokens") for i in (1, 2, 3, 4)},
    "entropy/budget": ("budget", "updates"),
    **{
        f"entropy/budget_{part}": (f"budget_{part}", "updates")
        for part in ("positive_kept", "positive_clipped", "negative_kept", "negative_clipped")
    },
    **{f"entropy/budget_removed_{side}": (f"removed_{side}", "updates") for side in ("low", "high", "dual")},
}
"""Metric: (numerator, denominator), both of SUM_NAMES; "updates" is the number of mini-batches merged."""

SUM_NAMES = tuple(dict.fromkeys(name for pair in _RATIOS.values() for name in pair if name != "updates"))
"""Entries of `TokenSums.sum_N`, in order."""
MAX_NAMES = ("ratio", "negative_ratio")
"""Entries of `TokenSums.max_M`, in order: the largest ratio and minus the smallest."""


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Mergeable statistics of response tokens: `+` merges disjoint shares of a mini-batch, and mini-batches.

    Across ranks: all-reduce `sum_N` with SUM and `max_M` with MAX over the data-parallel group.
    """

    sum_N: Tensor
    """float64: counts stay exact."""
    max_M: Tensor
    """float64; -inf where there was no token."""

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> "TokenSums":
        """The statistics of no token: the identity of `+`."""
        return cls(
            torch.zeros(len(SUM_NAMES), dtype=torch.float64, device=device),
            torch.full((len(MAX_NAMES),), -torch.inf, dtype=torch.float64, device=device),
        )

    def cpu(self) -> "TokenSums":
        """The same statistics on the host."""
        return TokenSums(self.sum_N.cpu(), self.max_M.cpu())

    def __add__(self, other: "TokenSums") -> "TokenSums":
        return TokenSums(self.sum_N + other.sum_N, torch.maximum(self.max_M, other.max_M))


def merge_token_sums(parts: Iterable[TokenSums], *, device: torch.device | str = "cpu") -> TokenSums:
    """All parts added up; the identity where there is none."""
    return fold(TokenSums.__add__, parts, TokenSums.zeros(device))


def to_metrics(sums: TokenSums, *, num_mini_batches: int = 1, rules: Rule | None = None) -> Metrics:
    """Metrics of the updates. What was never counted (0 / 0) is left out.

    Reads the tensors back to the host: call it once per mini-batch or step, on merged sums. `num_mini_batches` is how
    many mini-batches were merged: losses and budgets are normalised within each, so they average over mini-batches.
    `rules`: those that may act (`possible_rules`), None: all. The others get no rule/<name>_frac; without the matched
    control what is said of it, without a rule that masks tokens clip_ratio/<side>_effective, which then is <side>_mean,
    and without a dual clip what is said of its set is left out.

    Entropy and clipping:
        actor/entropy is the mean over tokens; actor/entropy_response_mean the mean over responses of the mean over
        their tokens (arXiv 2509.26114, Eq. 4 without its leading minus, which H has already); responses without
        tokens do not count.
        Fractions are over ALL response tokens, whatever the sign of A, as in TRL; low_of_negative and high_of_positive
        are over the tokens with A < 0 and A > 0, low_q1 ... high_q5 over the tokens of that entropy quintile.
        matched/low_beyond and high_beyond are what low_mean and high_mean would be if the bounds acted, where a coin
        drops in their place (weights.matched); low_dropped and high_dropped what it dropped. In the control the bounds'
        distances and the theorems' sets are those of the bounds that do not act.
        All count masked tokens too; low_effective and high_effective are low_mean and high_mean without them.
        region_mean = low + high (TRL); pg_clipfrac = low + high + dual (verl's leaves dual out, as pg_clipfrac_lower).
    clip_bound/low_mean, high_mean: means of 1 - lo and hi - 1 over the tokens whose bound is on (lo > 0, hi < inf).
    Theorems 1 and 2 of arXiv 2509.26114, X the low and Y the high side; states weigh as often as they were visited:
        entropy/clip_low_contribution   mean of r 1_X (N - Q), an estimate of p (E[Q] - E[Q | X])
        entropy/clip_low_difference     the same over the mean of r 1_X: E[Q] - E[Q | X], Fig. 1
        entropy/clip_low_surprisal      sum of r 1_X (-logp - H) over sum of r 1_X: E[-log p | X] - H, Fig. 2
        entropy/clip_low_surprisal_contribution   mean of r 1_X (-logp - H)
        entropy/clip_low_contribution_weighted   sum of aggregation weight * r 1_X (N - Q): states weigh as in the loss
        and clip_high likewise with Y, clip_dual with D = {r > dual}; all are 0 where the gate reads no bounds, and
        clip_dual is left out where it has no dual clip. With rewards independent of the response, clipping changes the
        entropy by learning rate * E[max(A, 0)] * (low - high + dual contribution_weighted); with aggregation
        token-mean the plain contributions are the same number, with any other they are not. The paper's theorems are
        low - high: a dual clip adds a set of tokens with A < 0 that are no longer pushed down. So its sign is low's,
        and beyond both bounds it takes back what clip-high did. A gate with a rescue (NSR) leaves some tokens of the
        sets their gradient: there the contributions are what clipping would do without it.
    entropy/region_e1 ... e4: shares of tokens with A > 0 and -logp < H (e1), A > 0 and -logp > H (e2), A < 0 and
        -logp < H (e3), A < 0 and -logp > H (e4): FlexEC's regions (arXiv 2602.09782). Ties and A = 0 are in none.
    The budget, in nats per unit of learning rate; POSITIVE RAISES the entropy:
        entropy/budget = sum over tokens of -c (Q - N), c = what multiplies grad log p in the update (weights and
        aggregation included, auxiliary losses not). Exactly the first-order change of the visited states' entropies,
        added up, where each state has logits of its own (those already divided by the temperature: for those before
        it, divide by its square) and plain gradient steps; with shared weights or Adam it
        keeps its meaning of "which way, and by which tokens", not its scale. Split by the sign of A and into kept and
        clipped tokens; the clipped ones' is 0 unless the gate leaves them gradient.
        entropy/budget_removed_low, _high, _dual: what clipped tokens would have with the gate r A, minus what they
        have. Positive: clipping took away a push that raises the entropy, so it holds the entropy down. With a PPO gate
        budget + the three is the budget of the unclipped loss.
    """
    if num_mini_batches < 1:
        raise ValueError(f"num_mini_batches is {num_mini_batches}; at least one mini-batch must have been merged")
    total = dict(zip(SUM_NAMES, sums.sum_N.tolist(), strict=True)) | {"updates": float(num_mini_batches)}
    shown = _RATIOS
    if rules is not None:
        hidden = {f"rule/{name}_frac" for rule, name in COUNTED_RULES.items() if not rule & rules}
        hidden |= set() if rules & Rule.DUAL else {f"entropy/clip_dual_{name}" for name, _, _ in _THEOREM_RATIOS}
        hidden |= set() if rules & Rule.MATCHED else {name for name in _RATIOS if name.startswith("matched/")}
        hidden |= set() if rules & MASKS else {f"clip_ratio/{side}_effective" for side in ("low", "high")}
        shown = {name: pair for name, pair in _RATIOS.items() if name not in hidden}
    values: dict[str, Values] = {
        name: Mean(total[above], total[below]) for name, (above, below) in shown.items() if total[below]
    }
    if total["tokens"]:
        largest = dict(zip(MAX_NAMES, sums.max_M.tolist(), strict=True))
        values["actor/ratio_max"] = largest["ratio"]
        values["actor/ratio_min"] = -largest["negative_ratio"]
    return declared(values)


def read_mean(sums: TokenSums, total: str, count: str) -> Mean:
    """The mean whose sum and count are these two of SUM_NAMES. Reads the host's copy of both."""
    return Mean(*(float(sums.sum_N[SUM_NAMES.index(name)]) for name in (total, count)))


def possible_rules(objective: ObjectiveConfig) -> Rule:
    """The rules that may act under this configuration."""
    return fold(Rule.__or__, (Rule[name.upper()] for name in objective.rules), Rule.SATURATED)
