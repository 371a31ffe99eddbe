"""What the objective reads and says of response tokens.

T = response tokens of B responses: of one micro-batch in the loss, of a rank's whole share of a mini-batch where tokens
are chosen and counted. Prompts and padding never arrive, so there is no mask; a response is never split. T may be 0.
Tensors are float32 (float64 works) unless said otherwise.

Four log-probs, four names: `logp` (current), `old_logp` (trainer, before the batch's first update), `behavior_logp`
(vLLM when it sampled), `ref_logp` (frozen reference).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.objective.segment_sums import segment_prefix_sum, segment_sum


class Reduce(Protocol):
    """Combines equal-shaped tensors of all ranks that hold a share of the mini-batch; every rank must call."""

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Response tokens with everything the objective may read of them."""

    logp_T: Tensor
    """log p under the current weights; carries the gradient in the loss."""
    entropy_T: Tensor
    """H of the current policy at the token's position, nats; carries the gradient in the loss."""
    expected_q_T: Tensor
    """N = sum over the vocabulary of p^2 (log p + H), the mean of Q = p (log p + H). No gradient."""
    old_logp_T: Tensor
    old_entropy_T: Tensor
    weight_T: Tensor
    """Aggregation weight (`aggregation.sequence_weight`)."""
    sequence_T: Tensor
    """int64: which of the B responses, ascending from 0."""
    position_T: Tensor
    """int64: position in the response, from 0."""
    sample_id_T: Tensor
    """int64: the response's position in the step; with `position_T` the identity of a token under any layout."""
    num_sequences: int
    """B; responses without tokens count."""
    context_T: Tensor | None = None
    """int64: which tokens of the mini-batch follow the same prompt and response so far (`contexts.number_contexts`);
    None: nothing is known of that."""
    outcome_T: Tensor | None = None
    """int64: which of them are the same token, too; with `context_T`."""
    ref_logp_T: Tensor | None = None
    columns_T: Mapping[str, Tensor]
    """Every column of the samples (`records.Sample`) by its name; one that no sample has is not there."""

    @property
    def advantage_T(self) -> Tensor:
        return self.columns_T["advantage"]

    @property
    def behavior_logp_T(self) -> Tensor | None:
        return self.columns_T.get("behavior_logp")

    @property
    def expert_logp_T(self) -> Tensor | None:
        """Old policy's log-prob of the expert answer at the same position; NaN past its end."""
        return self.columns_T.get("expert_logp")

    @property
    def correct_T(self) -> Tensor | None:
        """bool: the verifier calls the response correct; with `expert_logp_T`."""
        return self.columns_T.get("correct")

    @property
    def entropy_scale_T(self) -> Tensor | None:
        """Factor of the entropy bonus (AER-style); None: 1."""
        return self.columns_T.get("entropy_scale")

    @property
    def q_T(self) -> Tensor:
        """Q = p (log p + H) of the sampled token (S of arXiv 2602.03392), float64, detached."""
        logp_T = self.logp_T.detach().double()
        return logp_T.exp() * (logp_T + self.entropy_T.detach().double())

    def lengths(self) -> Tensor:
        """Tokens of each response, [B], in the dtype of the log-probs."""
        zeros = self.logp_T.new_zeros(self.num_sequences)
        return zeros.index_add(0, self.sequence_T, torch.ones_like(self.logp_T.detach()))

    def sequence_sum(self, values_T: Tensor) -> Tensor:
        """Sum over each response, [B]; differentiable, and the same to the last bit in whatever order a device adds."""
        return segment_sum(values_T, self.sequence_T, self.num_sequences)

    def prefix_sum(self, values_T: Tensor) -> Tensor:
        """Sum over each token's response up to and with the token, [T]; detached, and the same to the last bit wherever
        the response lies. Tokens of a response stand together, in order."""
        return segment_prefix_sum(values_T, self.sequence_T, self.num_sequences)

    def sequence_mean(self, values_T: Tensor) -> Tensor:
        """Mean over each token's response, given back to its tokens, [T]; differentiable."""
        mean_B = self.sequence_sum(values_T) / self.lengths().clamp(min=1).to(values_T.dtype)
        return mean_B[self.sequence_T]

    def replace(self, **changed: Tensor) -> "TokenBatch":
        """The same tokens with other values in these fields and columns, the name of each with its _T."""
        own = {field.name for field in fields(self)}
        values: dict[str, Any] = {name: value for name, value in changed.items() if name in own}
        columns = {name.removesuffix("_T"): value for name, value in changed.items() if name not in own}
        if unknown := columns.keys() - self.columns_T.keys():
            raise ValueError(f"the tokens have no columns {sorted(unknown)}; they have {sorted(self.columns_T)}")
        return replace(self, **values, columns_T={**self.columns_T, **columns})

    def detach(self) -> "TokenBatch":
        """The same tokens without gradients."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        detached: dict[str, Any] = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        columns_T = {name: column_T.detach() for name, column_T in self.columns_T.items()}
        return replace(self, **detached, columns_T=columns_T)

    @classmethod
    def concatenate(cls, parts: "Sequence[TokenBatch]") -> "TokenBatch":
        """All parts as one, in order. At least one; of those with tokens, a field is None in all or in none, and they
        have the same columns."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.num_sequences)
        # A part without tokens has nothing to add, whatever it says of a column.
        filled = [part for part in parts if part.logp_T.numel()] or list(parts[:1])
        columns_T = {name: torch.cat([part.columns_T[name] for part in filled]) for name in filled[0].columns_T}
        values: dict[str, Any] = {"num_sequences": starts[-1], "columns_T": columns_T}
        for field in fields(cls):
            if field.name in values:
                continue
            columns = [getattr(part, field.name) for part in parts]
            if field.name == "sequence_T":
                columns = [column + start for column, start in zip(columns, starts, strict=False)]
            columns = [column for column, part in zip(columns, parts, strict=True) if part.logp_T.numel()] or columns
            values[field.name] = None if columns[0] is None else torch.cat(columns)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The numbers that controllers and schedules set for one step; the same on every rank."""

    step: int
    """From 1."""
    seed: int
    """train.seed: random choices are keyed by (seed, step, sample, token)."""
    upper: tuple[float, float] = (0.0, 0.0)
    """FlexEC: (slope, start) of high(p) in this step."""
    lower: tuple[float, float] = (0.0, 0.0)
    """FlexEC: (slope, start) of low(p) in this step."""
    entropy_coefficient: float = 0.0
    """Of auxiliary.entropy in this step; 0: the bonus does not act."""
    positive_scale: float = 1.0
    """Of weights.positive_scale in this step."""
    loop: LoopControls | None = None
    """Of a closed-loop clip, before this update."""
    negative_scale: float = 1.0
    """Of weights.negative_scale in this step."""
    stare_acts: bool = True
    """Whether weights.stare acts in this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What statistics of the whole mini-batch decided of each token."""

    weight_T: Tensor
    """Product of the chosen weights and masks; 1 where none acts."""
    rule_T: Tensor
    """int32 `Rule` flags."""
    kl_cov_T: Tensor | None = None
    """bool: the tokens with a KL-Cov penalty."""
    bapo_bounds: tuple[float, float] | None = None
    """(lo, hi) of clip kind "bapo"."""
    loop: LoopChoice | None = None
    """Of a closed-loop clip."""
    stale_above: float | None = None
    """|log r| above which a token is stale, of clip kind "stale"."""

    @classmethod
    def none(cls, like_T: Tensor) -> "Choices":
        """No rule looked at the mini-batch, whose tokens' log-probs are like `like_T`."""
        weight_T = torch.ones_like(like_T.detach())
        return cls(weight_T=weight_T, rule_T=torch.zeros_like(weight_T, dtype=torch.int32))

    def split(self, sizes: Sequence[int]) -> "list[Choices]":
        """The choices of consecutive parts with `sizes` tokens, as the micro-batches were concatenated."""
        weights, rules = self.weight_T.split(list(sizes)), self.rule_T.split(list(sizes))
        covs = [None] * len(sizes) if self.kl_cov_T is None else list(self.kl_cov_T.split(list(sizes)))
        return [
            replace(self, weight_T=weight_T, rule_T=rule_T, kl_cov_T=cov_T)
            for weight_T, rule_T, cov_T in zip(weights, rules, covs, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """The loss of some tokens and what it was made of. All but `loss` are detached."""

    loss: Tensor
    """Scalar with gradient; add over micro-batches and ranks."""
    policy_T: Tensor
    """Policy loss per token, unweighted."""
    auxiliary: Tensor
    """Scalar: the auxiliary losses' part of `loss`."""
    kl_T: Tensor | None
    """KL estimate to the reference, without its coefficient."""
    advantage_T: Tensor
    """After token shaping."""
    ratio_T: Tensor
    """r at the configured level and anchor."""
    low_T: Tensor
    """lo; under weights.matched what it would be, and does not act."""
    high_T: Tensor
    """hi; inf is off. Under weights.matched likewise."""
    dual_T: Tensor
    """Bound of the dual clip; inf is off."""
    gate_T: Tensor
    """g = -d policy_T.sum() / d logp: the gate's gradient, before weights."""
    weight_T: Tensor
    """Product of all token weights, without the aggregation's."""
    coefficient_T: Tensor
    """-d (weighted policy loss) / d logp, aggregation included: what multiplies grad log p in the update."""
    rule_T: Tensor
    """int32 `Rule` flags of every rule that acted."""

    @classmethod
    def concatenate(cls, parts: "Sequence[TokenLoss]") -> "TokenLoss":
        """All parts as one, in order: token fields joined, scalars added."""
        values: dict[str, Any] = {
            "loss": torch.stack([part.loss.detach() for part in parts]).sum(),
            "auxiliary": torch.stack([part.auxiliary for part in parts]).sum(),
        }
        for field in fields(cls):
            if field.name.endswith("_T"):
                columns = [getattr(part, field.name) for part in parts]
                values[field.name] = None if columns[0] is None else torch.cat(columns)
        return cls(**values)
