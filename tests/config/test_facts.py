"""A variant says of itself what the rules over combinations ask; one that does not cannot be defined."""

import math
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest
from pydantic import Field, ValidationError

from megarl.config.advantage import AdvantageVariant, AllGroups, SamplerVariant, ShapingConfig, ShapingVariant
from megarl.config.auxiliary import AuxiliaryConfig, AuxiliaryVariant, ControllersConfig, ControllerVariant
from megarl.config.base import Config
from megarl.config.clip_variant import ClipVariant
from megarl.config.facts import NotBelow, RuleName, Variant, facts_of, marked_fields, rules_that
from megarl.config.fields import section_types
from megarl.config.gate import Gate, GateVariant, PpoGate
from megarl.config.objective import ObjectiveConfig
from megarl.config.reward import RandomReward, RewardConfig, VerifierVariant
from megarl.config.trust import Clip, ConstantClip, FlexEcClip, RatioConfig
from megarl.config.weight import (
    MaskedImportance,
    SequenceRejection,
    TruncatedImportance,
    WeightsConfig,
    WeightVariant,
)
from megarl.objective.token_sums import CLIPPED, MASKS, possible_rules
from megarl.rules import Rule

PLUG_POINTS: dict[type[Variant], set[str]] = {
    SamplerVariant: {"needs_spread"},
    AdvantageVariant: {"compares_group"},
    ShapingVariant: {"tells_tokens_apart"},
    ClipVariant: {"sets_bounds", "of_tokens", "needs_survey", "steers", "follows_entropy", "follows_length"},
    GateVariant: {"reads_bounds", "drops_beyond", "of_tokens", "bounds_first", "is_weight", "dual_bound", "rules"},
    WeightVariant: {"tells_tokens_apart", "needs_survey", "mismatch", "compares_updates", "rules"},
    AuxiliaryVariant: {"reads", "needs_survey", "compares_updates", "rules"},
    ControllerVariant: {"acts_on", "effect", "follows_entropy"},
    VerifierVariant: {"looks_at_answer", "always_equal", "reads_ground_truth", "only_source"},
}


@pytest.mark.parametrize("point", PLUG_POINTS, ids=lambda point: point.__name__)
def test_each_plug_point_asks(point: type[Variant]) -> None:
    assert {name for name, _ in facts_of(point)} == PLUG_POINTS[point]
    assert all(doc for _, doc in facts_of(point))


@pytest.mark.parametrize("point", PLUG_POINTS, ids=lambda point: point.__name__)
def test_a_variant_that_forgets_a_fact_cannot_be_defined(point: type[Variant]) -> None:
    for forgotten in PLUG_POINTS[point]:
        said = dict.fromkeys(PLUG_POINTS[point] - {forgotten})
        with pytest.raises(TypeError) as caught:
            type(point)("Made", (point,), {"__annotations__": dict.fromkeys(said, ClassVar[Any]), **said})
        text = str(caught.value)
        assert text.startswith(f"class Made is a variant of {point.__name__} and does not say of itself: {forgotten} (")
        assert not any(f" {name} (" in text for name in said)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(TypeError) as caught:

        class PositionClip(ClipVariant):
            kind: Literal["position"]
            needs_survey: ClassVar[bool] = False
            steers: ClassVar[bool] = False
            follows_entropy: ClassVar[bool] = False
            follows_length: ClassVar[bool] = False

    assert str(caught.value) == (
        "class test_the_refusal_says_what_to_do.<locals>.PositionClip is a variant of ClipVariant and "
        "does not say of itself: sets_bounds (Whether it gives bounds at all); of_tokens (Whether its bounds are of "
        "single tokens' ratios, so that it needs a ratio per token). Give each in the class body, as a ClassVar or a "
        "property; facts are not inherited from another variant"
    )


def test_facts_are_not_inherited_from_another_variant() -> None:
    with pytest.raises(TypeError, match=r"class \S*PositionClip .* sets_bounds \(.*of_tokens \(.*needs_survey \("):

        class PositionClip(ConstantClip):
            slope: float = 0.1


class PositionClip(ClipVariant):
    """Bounds that widen along the response: made up, and of tokens."""

    kind: Literal["position"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = True
    follows_length: ClassVar[bool] = False


class CollarGate(GateVariant):
    """Made up: a weight, so it reads no bounds, and with a dual bound."""

    kind: Literal["collar"]
    reads_bounds: ClassVar[Literal["never", "may", "must"]] = "never"
    drops_beyond: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    bounds_first: ClassVar[bool] = False
    is_weight: ClassVar[bool] = True
    dual_bound: ClassVar[float] = math.inf
    rules: ClassVar[tuple[RuleName, ...]] = ("cap",)


class FirstTokens(WeightVariant):
    """Made up: only a response's first tokens count."""

    tells_tokens_apart: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "corrects"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ("opsm",)
    low: float = 0.0
    high: Annotated[float, NotBelow("low")] = 1.0


class WiderWeights(WeightsConfig):
    first_tokens: FirstTokens | None = None


class WiderObjective(ObjectiveConfig):
    """The plug points with a member more each."""

    clip: Annotated[Clip | PositionClip, Field(discriminator="kind")] = ConstantClip()
    gate: Annotated[Gate | CollarGate, Field(discriminator="kind")] = PpoGate()
    weights: WiderWeights = WiderWeights()


def problems(**objective: Any) -> list[str]:
    try:
        WiderObjective.model_validate(objective)
    except ValidationError as error:
        return list(error.errors()[0]["ctx"]["error"].problems)
    return []


POSITION = {"kind": "position"}
NONE = {"kind": "none"}


@pytest.mark.parametrize("level", ["sequence", "sequence_token", "geometric"])
def test_a_new_clip_of_tokens_is_refused_where_there_is_a_ratio_per_response(level: str) -> None:
    (problem,) = problems(clip=POSITION, ratio={"level": level})
    assert problem == (
        f'objective.clip.kind "position" gives each token bounds of its own, objective.ratio.level "{level}" has one '
        'ratio per response; use level "token", or clip kind "constant", "log" or "stale"'
    )


def test_a_new_clip_is_read_wherever_its_kind_was_asked_for() -> None:
    objective = WiderObjective.model_validate({"clip": POSITION})
    assert objective.needs_survey
    assert objective.follows_entropy
    assert possible_rules(objective) == Rule.CLIP_LOW | Rule.CLIP_HIGH | Rule.SATURATED
    (problem,) = problems(clip=POSITION, gate={"kind": "cispo"})
    assert problem.startswith('objective.gate.kind "cispo" reads no bounds, but objective.clip.kind is "position"')


def test_a_new_gate_is_read_wherever_its_kind_was_asked_for() -> None:
    (problem,) = problems(gate={"kind": "collar"})
    assert problem.startswith('objective.gate.kind "collar" reads no bounds, but objective.clip.kind is "constant"')
    objective = WiderObjective.model_validate({"gate": {"kind": "collar"}, "clip": NONE})
    assert possible_rules(objective) == Rule.CAP | Rule.SATURATED
    (problem,) = problems(gate={"kind": "collar"}, clip=NONE, ratio={"level": "geometric"})
    assert problem.startswith('objective.ratio.level "geometric" bounds token ratios before it averages them (GMPO)')
    # Its gradient is the token's own at any level, so a token rule may drop single tokens there.
    assert not problems(
        gate={"kind": "collar"}, clip=NONE, ratio={"level": "sequence"}, weights={"clip_b": {}, "erc": {}}
    )


def test_a_new_weight_is_read_wherever_its_name_was_asked_for() -> None:
    objective = WiderObjective.model_validate({"weights": {"first_tokens": {}}})
    assert objective.reads_behavior
    assert not objective.needs_survey
    assert Rule.OPSM in possible_rules(objective)
    (problem,) = problems(weights={"first_tokens": {}}, ratio={"level": "sequence"})
    assert problem.startswith("objective.weights.first_tokens weighs single tokens")
    assert problem.endswith('use level "sequence_token" or "token"')  # it has no level of its own
    (problem,) = problems(weights={"first_tokens": {}, "tis": {}})
    assert problem.startswith(
        "objective.weights.tis and objective.weights.first_tokens both multiply by old / behavior"
    )
    (problem,) = problems(weights={"first_tokens": {}}, ratio={"anchor": "behavior"})
    assert problem.startswith('objective.ratio.anchor "behavior" has the trainer-vLLM mismatch in the ratio already')
    (problem,) = problems(weights={"first_tokens": {"low": 3.0}})
    assert problem == "objective.weights.first_tokens.low 3 is above high 1"


def members(section: type[Config], name: str) -> list[type[Config]]:
    return section_types(section.model_fields[name].annotation)


def test_every_member_of_a_plug_point_is_a_variant() -> None:
    plugged = [members(ObjectiveConfig, name) for name in ("sampler", "advantage", "clip", "gate")]
    plugged += [members(RewardConfig, "verifier")]
    plugged += [
        members(section, name)
        for section in (ShapingConfig, WeightsConfig, AuxiliaryConfig, ControllersConfig)
        for name in section.model_fields
    ]
    for point in plugged:
        assert point
        assert all(issubclass(member, Variant) for member in point), point


def test_every_rule_is_some_variants() -> None:
    named = set(get_args(RuleName))
    assert {rule.name.lower() for rule in Rule if rule.name} == named | {"saturated"}
    everything = ObjectiveConfig.model_validate(
        {
            "gate": {"kind": "ppo", "dual": 3.0},
            "weights": {name: {} for name in WeightsConfig.model_fields if name not in ("importance_mask", "matched")},
            "auxiliary": {name: {} for name in AuxiliaryConfig.model_fields},
        }
    )
    masked = ObjectiveConfig.model_validate({"weights": {"importance_mask": {}, "matched": {}}})
    gates = [ObjectiveConfig.model_validate({"gate": {"kind": kind}, "clip": NONE}) for kind in ("cispo", "dppo")]
    assert frozenset().union(*(objective.rules for objective in (everything, masked, *gates))) == named


def test_every_rule_has_one_effect() -> None:
    effects = [rules_that(effect) for effect in ("clips", "masks", "limits", "adds")]
    assert sorted(name for names in effects for name in names) == sorted(get_args(RuleName))
    assert CLIPPED == Rule.CLIP_LOW | Rule.CLIP_HIGH | Rule.DUAL | Rule.DPPO
    assert ~MASKS & ~Rule(0) == CLIPPED | Rule.CAP | Rule.TIS | Rule.KL_COV | Rule.SATURATED


@pytest.mark.parametrize("level", get_args(RatioConfig.model_fields["level"].annotation))
def test_every_level_has_its_facts(level: Any) -> None:
    facts = RatioConfig(level=level).facts
    assert facts.per_response == (level not in ("token", "prefix"))
    assert facts.of_prefix == (level == "prefix")
    assert facts.through_response == (level in ("sequence", "geometric"))
    assert facts.bounds_first == (level == "geometric")


def test_facts_that_depend_on_fields() -> None:
    assert (TruncatedImportance().tells_tokens_apart, TruncatedImportance(level="sequence").tells_tokens_apart) == (
        True,
        False,
    )
    assert [MaskedImportance(level=level).tells_tokens_apart for level in ("token", "sequence", "geometric")] == [
        *(True, False, False)
    ]
    duals = PpoGate(dual=3.0), PpoGate(dual_at_high=True)
    assert (PpoGate().rules, *(gate.rules for gate in duals)) == ((), ("dual",), ("dual",))
    assert (PpoGate().bounds_first, *(gate.bounds_first for gate in duals)) == (True, False, False)
    assert [clip.bounds_above for clip in (ConstantClip(), ConstantClip(high=math.inf))] == [True, False]
    coin = [RandomReward(kind="random", p=p).always_equal for p in (0.0, 0.5, 1.0)]
    normal = [RandomReward(kind="random", distribution="gaussian", std=std).always_equal for std in (0.0, 1.0)]
    assert (coin, normal) == ([True, False, True], [True, False])
    assert not RandomReward(kind="random", distribution="uniform", p=1.0).always_equal
    schedules = get_args(FlexEcClip.model_fields["schedule"].annotation)
    assert [name for name in schedules if FlexEcClip(kind="flexec", schedule=name).follows_entropy] == ["od"]
    assert [name for name in schedules if FlexEcClip(kind="flexec", schedule=name).follows_length] == [
        "id",
        "did",
        "od",
    ]


def test_marks_stand_at_their_fields() -> None:
    ((name, value, mark),) = marked_fields(SequenceRejection(), NotBelow)
    assert (name, value, mark) == ("high", 1.001, NotBelow("low", when=("statistic", "k1")))
    assert list(marked_fields(AllGroups(), NotBelow)) == []
