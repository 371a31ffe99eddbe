"""The training objective: six plug points that combine freely, and the combinations that make no sense.

Sampler, advantage (with shaping), trust (ratio, clip, gate), weights and aggregation, auxiliary losses, controllers.
`configs/methods/` has a fragment for each method of the literature.
"""

from collections.abc import Callable, Iterator
from typing import Any, Self

from pydantic import model_validator

from megarl.config.advantage import Advantage, AllGroups, DrGrpo, Sampler, ShapingConfig
from megarl.config.auxiliary import AuxiliaryConfig, ControllersConfig
from megarl.config.base import Config, raise_problems
from megarl.config.trust import Clip, ConstantClip, Gate, PpoGate, RatioConfig
from megarl.config.weight import AggregationConfig, WeightsConfig

_DEFAULT_TAGS = {
    "sampler": ("kind", "all"),
    "advantage": ("method", "dr_grpo"),
    "clip": ("kind", "constant"),
    "gate": ("kind", "ppo"),
}
"""A table without its tag means the default member: `objective.clip.low = 0.1` needs no kind."""


class ObjectiveConfig(Config):
    """What the policy maximises."""

    sampler: Sampler = AllGroups()
    """Which groups are trained on."""
    advantage: Advantage = DrGrpo()
    """How a group's rewards become advantages."""
    shaping: ShapingConfig = ShapingConfig()
    """Bonuses on rewards and advantages."""
    ratio: RatioConfig = RatioConfig()
    """Level and anchor of the ratio."""
    clip: Clip = ConstantClip()
    """Bounds of the ratio per token."""
    gate: Gate = PpoGate()
    """What the bounds do to the gradient."""
    weights: WeightsConfig = WeightsConfig()
    """Token weights and masks."""
    aggregation: AggregationConfig = AggregationConfig()
    """How token losses become one number."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """Losses beside the policy loss."""
    controllers: ControllersConfig = ControllersConfig()
    """What moves coefficients over the run."""

    @model_validator(mode="before")
    @classmethod
    def _fill_default_tags(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: {_DEFAULT_TAGS[name][0]: _DEFAULT_TAGS[name][1], **value}
            if name in _DEFAULT_TAGS and isinstance(value, dict)
            else value
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _rules_across_plug_points(self) -> Self:
        return raise_problems(self, _CHECKS)

    @property
    def needs_survey(self) -> bool:
        """Whether a rule chooses tokens from statistics of the whole mini-batch under the current weights: one more
        forward pass before every update but a step's first."""
        weights = self.weights
        chosen = (weights.high_entropy, weights.clip_cov, weights.steer, weights.clip_b, weights.clip_v)
        return any(chosen) or self.auxiliary.kl_cov is not None or self.clip.kind == "bapo"


def _check_gate_and_clip(config: ObjectiveConfig) -> Iterator[str]:
    gate, clip = config.gate.kind, config.clip.kind
    if gate in ("cispo", "sapo", "dppo") and clip != "none":
        yield (
            f'objective.gate.kind "{gate}" reads no bounds, but objective.clip.kind is "{clip}", which would do '
            'nothing; set objective.clip = {kind = "none"}, or a gate that reads bounds: "ppo", "ce_gppo" or "aspo"'
        )
    if gate in ("ce_gppo", "aspo") and clip == "none":
        yield (
            f'objective.gate.kind "{gate}" acts at the bounds, but objective.clip.kind is "none"; choose bounds, or a '
            'gate that needs none: "ppo", "cispo", "sapo" or "dppo"'
        )


def _check_level(config: ObjectiveConfig) -> Iterator[str]:
    level, clip, gate = config.ratio.level, config.clip.kind, config.gate.kind
    if level != "token" and clip in ("flexec", "dcpo", "bapo", "archer"):
        yield (
            f'objective.clip.kind "{clip}" gives each token bounds of its own, objective.ratio.level "{level}" has one '
            'ratio per response; use level "token", or clip kind "constant" or "log"'
        )
    if level == "geometric" and (gate != "ppo" or config.gate.dual != float("inf")):  # type: ignore[union-attr]
        yield (
            'objective.ratio.level "geometric" bounds token ratios before it averages them (GMPO); it needs '
            'objective.gate = {kind = "ppo"} without dual clip'
        )
    if level != "token" and gate in ("dppo", "aspo"):
        yield f'objective.gate.kind "{gate}" is defined on token ratios; set objective.ratio.level to "token"'
    if level in ("sequence", "geometric") and config.shaping.entropy:
        yield (
            f'objective.ratio.level "{level}" has one advantage per response, objective.shaping.entropy one per token;'
            ' use level "sequence_token"'
        )


def _check_token_rules(config: ObjectiveConfig) -> Iterator[str]:
    """At levels "sequence" and "geometric" a token's loss has a gradient in every token of its response, so dropping
    one token's loss would not drop its gradient. CISPO's is in the token's own log-prob at any level."""
    if config.ratio.level not in ("sequence", "geometric") or config.gate.kind == "cispo":
        return
    weights = config.weights
    per_token = {
        "high_entropy": weights.high_entropy,
        "clip_cov": weights.clip_cov,
        "steer": weights.steer,
        "clip_b": weights.clip_b,
        "clip_v": weights.clip_v,
        "erc": weights.erc,
        "tis": weights.tis and weights.tis.level == "token",
        "importance_mask": weights.importance_mask and weights.importance_mask.level == "token",
    }
    for name in (name for name, on in per_token.items() if on):
        other = f', or objective.weights.{name}.level "sequence"' if name in ("tis", "importance_mask") else ""
        yield (
            f'objective.weights.{name} weighs single tokens, but at objective.ratio.level "{config.ratio.level}" the '
            f'gradient of a response runs through all of its tokens; use level "sequence_token" or "token"{other}'
        )


def _check_mismatch(config: ObjectiveConfig) -> Iterator[str]:
    weights = config.weights
    if weights.tis and weights.importance_mask:
        yield (
            "objective.weights.tis and objective.weights.importance_mask both multiply by old / behavior; the mismatch "
            "would be corrected twice; keep one"
        )
    if config.ratio.anchor == "behavior" and (weights.tis or weights.importance_mask):
        yield (
            'objective.ratio.anchor "behavior" has the trainer-vLLM mismatch in the ratio already; remove '
            'objective.weights.tis and importance_mask, or set the anchor to "old" (the decoupled form)'
        )


def _check_bounds_in_order(config: ObjectiveConfig) -> Iterator[str]:
    rejection = config.weights.sequence_rejection
    ranged = rejection if rejection and rejection.statistic == "k1" else None
    cispo = config.gate if config.gate.kind == "cispo" else None
    bapo = config.clip if config.clip.kind == "bapo" else None
    coefficient = config.controllers.entropy_coefficient
    ordered = (
        ("objective.weights.tis", config.weights.tis, "floor", "cap"),
        ("objective.weights.importance_mask", config.weights.importance_mask, "low", "high"),
        ("objective.weights.sequence_rejection", ranged, "low", "high"),
        ("objective.weights.clip_cov", config.weights.clip_cov, "low", "high"),
        ("objective.weights.erc", config.weights.erc, "low", "high"),
        ("objective.controllers.entropy_coefficient", coefficient, "minimum", "maximum"),
        ("objective.gate", cispo, "floor", "cap"),
        ("objective.clip", bapo, "low_start", "low_stop"),
        ("objective.clip", bapo, "high_start", "high_stop"),
    )
    for path, section, low, high in ordered:
        if section is not None and getattr(section, low) > getattr(section, high):
            yield f"{path}.{low} {getattr(section, low):g} is above {high} {getattr(section, high):g}"


def _check_controllers(config: ObjectiveConfig) -> Iterator[str]:
    controllers, auxiliary = config.controllers, config.auxiliary
    adaptive = {"entropy_coefficient": controllers.entropy_coefficient, "aer": controllers.aer}
    for name, controller in adaptive.items():
        if controller and not auxiliary.entropy:
            yield f"objective.controllers.{name} moves objective.auxiliary.entropy.coefficient; add that table"
    if all(adaptive.values()):
        yield "objective.controllers.entropy_coefficient and aer both move the same coefficient; keep one"
    if controllers.positive_scale and not config.weights.positive_scale:
        yield "objective.controllers.positive_scale moves objective.weights.positive_scale.scale; add that table"
    adaptive_entropy, bonus = controllers.entropy_coefficient, auxiliary.entropy
    if adaptive_entropy and bonus and not adaptive_entropy.minimum <= bonus.coefficient <= adaptive_entropy.maximum:
        yield (
            f"objective.auxiliary.entropy.coefficient {bonus.coefficient:g} is where the controller starts, but "
            f"objective.controllers.entropy_coefficient keeps it between {adaptive_entropy.minimum:g} and "
            f"{adaptive_entropy.maximum:g}; start inside"
        )
    scale, moves = config.weights.positive_scale, controllers.positive_scale
    if scale and moves and scale.scale <= moves.step:
        yield (
            f"objective.weights.positive_scale.scale {scale.scale:g} minus objective.controllers.positive_scale.step "
            f"{moves.step:g} is not above 0; positive tokens would be punished; lower the step"
        )
    if controllers.reference_reset and not auxiliary.kl:
        yield "objective.controllers.reference_reset renews the reference of objective.auxiliary.kl; add that table"


_CHECKS: tuple[Callable[[ObjectiveConfig], Iterator[str]], ...] = (
    _check_gate_and_clip,
    _check_level,
    _check_token_rules,
    _check_mismatch,
    _check_bounds_in_order,
    _check_controllers,
)
