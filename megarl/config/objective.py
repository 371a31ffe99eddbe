"""The training objective: six plug points that combine freely, and the combinations that make no sense.

Sampler, advantage (with shaping), trust (ratio, clip, gate), weights and aggregation, auxiliary losses, controllers.
`configs/methods/` has a fragment for each method of the literature.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from pydantic import model_validator

from megarl.config.advantage import Advantage, AllGroups, DrGrpo, Sampler, ShapingConfig
from megarl.config.auxiliary import AuxiliaryConfig, ControllersConfig, ControllerVariant
from megarl.config.base import Config, raise_problems
from megarl.config.facts import NotBelow, RuleName, Variant, join_or, marked_fields, names_where, tags_where
from megarl.config.gate import Gate, PpoGate
from megarl.config.trust import Clip, ConstantClip, RatioConfig
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
    def variants(self) -> dict[str, Variant]:
        """Every variant that is on, by its dotted path below `objective`."""
        found: dict[str, Variant] = {"sampler": self.sampler, "advantage": self.advantage}
        for section, on in (
            ("shaping", self.shaping.on),
            ("weights", self.weights.on),
            ("auxiliary", self.auxiliary.on),
            ("controllers", self.controllers.on),
        ):
            found |= {f"{section}.{name}": variant for name, variant in on.items()}
        return found | {"gate": self.gate, "clip": self.clip}

    @property
    def needs_survey(self) -> bool:
        """Whether a rule chooses tokens from statistics of the whole mini-batch under the current weights: one more
        forward pass before every update but a step's first."""
        choosing = (self.clip, *self.weights.on.values(), *self.auxiliary.on.values())
        return any(variant.needs_survey for variant in choosing)

    @property
    def bounds_act(self) -> bool:
        """Whether the clip's bounds act on tokens; not where a coin drops as many in their place."""
        return self.weights.matched is None

    @property
    def follows_entropy(self) -> bool:
        """Whether a number of the step follows from the entropy before the step's first update."""
        return self.clip.follows_entropy or any(on.follows_entropy for on in self.controllers.on.values())

    @property
    def follows_length(self) -> tuple[str, ...]:
        """The fields of the run by which a step's numbers depend on how many steps it has."""
        return ("objective.clip",) if self.clip.follows_length else ()

    @property
    def scores_first(self) -> bool:
        """Whether the old log-probs and entropies of a whole mini-batch must be known before its loss is computed: they
        choose tokens, or set numbers of the step."""
        return self.needs_survey or self.weights.reads_behavior or self.follows_entropy

    @property
    def reads_behavior(self) -> bool:
        """Whether the loss compares with vLLM's log-probs."""
        return self.ratio.reads_behavior or self.weights.reads_behavior

    @property
    def rules(self) -> frozenset[RuleName]:
        """The rules that may act on tokens."""
        acting = (self.gate, *self.weights.on.values(), *self.auxiliary.on.values())
        of_bounds = self.clip.rules if self.bounds_act else ()
        return frozenset([*of_bounds, *(rule for variant in acting for rule in variant.rules)])


def _check_gate_and_clip(config: ObjectiveConfig) -> Iterator[str]:
    gate, clip = config.gate, config.clip
    if gate.reads_bounds == "never" and clip.sets_bounds:
        may, must = (tags_where(Gate, reads_bounds=reads, reads_upper=True) for reads in ("may", "must"))
        reading = join_or(may + must)
        yield (
            f'objective.gate.kind "{gate.kind}" reads no bounds, but objective.clip.kind is "{clip.kind}", which would '
            f'do nothing; set objective.clip = {{kind = "none"}}, or a gate that reads bounds: {reading}'
        )
    if gate.reads_bounds != "never" and not gate.reads_upper and clip.bounds_above:
        yield (
            f'objective.gate.kind "{gate.kind}" has no upper bound, but objective.clip.kind "{clip.kind}" sets one, '
            'which would do nothing; set objective.clip.high = inf (kind "constant"), or another gate'
        )
    for name in gate.at_bounds if not clip.sets_bounds else ():
        yield (
            f'objective.gate.{name} acts at the bounds, but objective.clip.kind is "{clip.kind}"; choose bounds, or '
            "turn it off"
        )
    if isinstance(gate, PpoGate) and gate.dual_at_high and clip.sets_bounds and not clip.bounds_above:
        yield (
            f'objective.gate.dual_at_high acts at the upper bound, but objective.clip.kind "{clip.kind}" has it turned '
            "off; set objective.clip.high to a number, or turn dual_at_high off"
        )
    if gate.reads_bounds == "must" and not clip.sets_bounds:
        needless = join_or(tags_where(Gate, reads_bounds="may") + tags_where(Gate, reads_bounds="never"))
        yield (
            f'objective.gate.kind "{gate.kind}" acts at the bounds, but objective.clip.kind is "{clip.kind}"; choose '
            f"bounds, or a gate that needs none: {needless}"
        )


def _check_level(config: ObjectiveConfig) -> Iterator[str]:
    level, facts, clip, gate = config.ratio.level, config.ratio.facts, config.clip, config.gate
    if facts.per_response and clip.of_tokens:
        others = join_or(tags_where(Clip, sets_bounds=True, of_tokens=False))
        yield (
            f'objective.clip.kind "{clip.kind}" gives each token bounds of its own, objective.ratio.level "{level}" '
            f'has one ratio per response; use level "token", or clip kind {others}'
        )
    if facts.of_prefix and clip.of_probability:
        yield (
            f'objective.clip.kind "{clip.kind}" bounds a token\'s own ratio by its probability, '
            f'objective.ratio.level "{level}" compares everything up to the token; use clip kind "growing", or level '
            '"token"'
        )
    if facts.bounds_first and not gate.bounds_first:
        yield (
            f'objective.ratio.level "{level}" bounds token ratios before it averages them (GMPO); it needs '
            'objective.gate = {kind = "ppo"} without dual clip or rescue'
        )
    if (facts.per_response or facts.of_prefix) and gate.of_tokens:
        yield f'objective.gate.kind "{gate.kind}" is defined on token ratios; set objective.ratio.level to "token"'
    for name in (name for name, bonus in config.shaping.on.items() if bonus.tells_tokens_apart):
        if facts.through_response:
            yield (
                f'objective.ratio.level "{level}" has one advantage per response, objective.shaping.{name} one per '
                'token; use level "sequence_token"'
            )


def _check_token_rules(config: ObjectiveConfig) -> Iterator[str]:
    """Where a token's loss has a gradient in every token of its response, dropping one token's loss would not drop its
    gradient. A gate that is a weight has its gradient in the token's own log-prob at any level."""
    if not config.ratio.facts.through_response or config.gate.is_weight:
        return
    for name, weight in config.weights.on.items():
        if weight.tells_tokens_apart:
            other = f', or objective.weights.{name}.level "sequence"' if "level" in type(weight).model_fields else ""
            yield (
                f"objective.weights.{name} weighs single tokens, but at objective.ratio.level "
                f'"{config.ratio.level}" the gradient of a response runs through all of its tokens; use level '
                f'"sequence_token" or "token"{other}'
            )


def _dropping_gate(config: ObjectiveConfig, claim: str, *, other: str = "") -> Iterator[str]:
    """What keeps a gate from dropping exactly what lies beyond its bounds, without which `claim` would be false.
    other: what may be done beside changing the gate."""
    gate = config.gate
    if config.clip.sets_bounds and gate.reads_bounds != "never" and not gate.drops_beyond:
        others = join_or(tags_where(Gate, drops_beyond=True))
        yield (
            f'{claim}, but objective.gate.kind "{gate.kind}" drops none: what is beyond keeps a gradient; use gate '
            f"{others}{other}"
        )
    for name in gate.at_bounds:
        yield f"{claim}, but with objective.gate.{name} they do something else; leave it out{other}"


def _check_matched_control(config: ObjectiveConfig) -> Iterator[str]:
    clip = config.clip
    if config.bounds_act:
        return
    if not clip.sets_bounds:
        others = join_or(tags_where(Clip, sets_bounds=True))
        yield (
            f"objective.weights.matched drops as many tokens as bounds would, but objective.clip.kind is "
            f'"{clip.kind}", which would drop none; set the clip whose control this is: {others}'
        )
    elif not (clip.bounds_below or clip.bounds_above):
        yield (
            "objective.weights.matched drops as many tokens as bounds would, but objective.clip.low and "
            "objective.clip.high turn both off; set those of the clip whose control this is, or remove the table"
        )
    yield from _dropping_gate(
        config, "objective.weights.matched drops as many tokens as bounds would", other=", or remove the table"
    )
    if config.weights.clip_cov:
        yield (
            "objective.weights.matched and objective.weights.clip_cov draw by the same lot, so that they would drop "
            "the same tokens, while Clip-Cov beside bounds drops others; remove one of the two tables"
        )


def _check_closed_loop(config: ObjectiveConfig) -> Iterator[str]:
    clip = config.clip
    if not clip.steers:
        return
    yield from _dropping_gate(config, f'objective.clip.kind "{clip.kind}" steers by the tokens that its bounds drop')
    if not config.bounds_act:
        others = join_or(tags_where(Clip, sets_bounds=True, steers=False))
        yield (
            f'objective.weights.matched takes the effect of the bounds away by which objective.clip.kind "{clip.kind}" '
            f"steers; remove the table, or use clip kind {others}"
        )


def _check_mismatch(config: ObjectiveConfig) -> Iterator[str]:
    correcting = [name for name, weight in config.weights.on.items() if weight.mismatch == "corrects"]
    if len(correcting) > 1:
        yield (
            f"{' and '.join(f'objective.weights.{name}' for name in correcting)} "
            f"{'both' if len(correcting) == 2 else 'all'} multiply by old / behavior; the mismatch would be corrected "
            f"{'twice' if len(correcting) == 2 else 'more than once'}; keep one"
        )
    if config.ratio.reads_behavior and correcting:
        names = " and ".join(names_where(WeightsConfig, mismatch="corrects"))
        yield (
            'objective.ratio.anchor "behavior" has the trainer-vLLM mismatch in the ratio already; remove '
            f'objective.weights.{names}, or set the anchor to "old" (the decoupled form)'
        )


def _check_bounds_in_order(config: ObjectiveConfig) -> Iterator[str]:
    for path, section in config.variants.items():
        for high, value, mark in marked_fields(section, NotBelow):
            low = getattr(section, mark.other)
            if low > value and (mark.when is None or getattr(section, mark.when[0]) == mark.when[1]):
                yield f"objective.{path}.{mark.other} {low:g} is above {high} {value:g}"


def _check_controllers(config: ObjectiveConfig) -> Iterator[str]:
    on = config.controllers.on
    for name, controller in on.items():
        if controller.acts_on not in config.variants:
            yield f"objective.controllers.{name} {controller.effect}; add that table"
    for names in _same_effect(on):
        yield (
            f"objective.controllers.{' and '.join(names)} {'both' if len(names) == 2 else 'all'} move the same "
            "coefficient; keep one"
        )
    yield from _check_controllers_start(config)


def _same_effect(on: Mapping[str, ControllerVariant]) -> Iterator[list[str]]:
    """Names of the controllers that do one thing, where several do."""
    effects = dict.fromkeys(controller.effect for controller in on.values())
    for effect in effects:
        names = [name for name, controller in on.items() if controller.effect == effect]
        if len(names) > 1:
            yield names


def _check_controllers_start(config: ObjectiveConfig) -> Iterator[str]:
    controllers = config.controllers
    adaptive_entropy, bonus = controllers.entropy_coefficient, config.auxiliary.entropy
    if adaptive_entropy and bonus and not adaptive_entropy.minimum <= bonus.coefficient <= adaptive_entropy.maximum:
        yield (
            f"objective.auxiliary.entropy.coefficient {bonus.coefficient:g} is where the controller starts, but "
            f"objective.controllers.entropy_coefficient keeps it between {adaptive_entropy.minimum:g} and "
            f"{adaptive_entropy.maximum:g}; start inside"
        )
    if controllers.negative_scale and config.weights.negative_scale and not config.weights.negative_scale.scale:
        yield (
            "objective.controllers.negative_scale enlarges objective.weights.negative_scale.scale, which is 0 and "
            "stays so; set a scale above 0, or remove the controller"
        )
    scale, moves = config.weights.positive_scale, controllers.positive_scale
    if scale and moves and scale.scale <= moves.step:
        yield (
            f"objective.weights.positive_scale.scale {scale.scale:g} minus objective.controllers.positive_scale.step "
            f"{moves.step:g} is not above 0; positive tokens would be punished; lower the step"
        )


_CHECKS: tuple[Callable[[ObjectiveConfig], Iterator[str]], ...] = (
    _check_gate_and_clip,
    _check_level,
    _check_token_rules,
    _check_matched_control,
    _check_closed_loop,
    _check_mismatch,
    _check_bounds_in_order,
    _check_controllers,
)
