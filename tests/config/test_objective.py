"""Combinations that make no sense are refused with a text that says what to change; what makes sense loads."""

import math
from pathlib import Path

import pytest

from megarl.config.advantage import DrGrpo
from megarl.config.gate import PpoGate
from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import ConstantClip
from megarl.config.weight import SequenceRejection
from tests.config.text import load_small, problems_of, write_config

REFUSED = {
    "gate without bounds": (
        ["objective.gate.kind=cispo"],
        'objective.gate.kind "cispo" reads no bounds, but objective.clip.kind is "constant", which would do nothing; '
        'set objective.clip = {kind = "none"}, or a gate that reads bounds: "ppo", "ce_gppo" or "aspo"',
    ),
    "gate at bounds": (
        ["objective.gate.kind=aspo", "objective.clip.kind=none"],
        'objective.gate.kind "aspo" acts at the bounds, but objective.clip.kind is "none"; choose bounds, or a gate '
        'that needs none: "ppo", "up", "cispo", "sapo" or "dppo"',
    ),
    "a bound that the gate has not": (
        ["objective.gate.kind=up"],
        'objective.gate.kind "up" has no upper bound, but objective.clip.kind "constant" sets one, which would do '
        'nothing; set objective.clip.high = inf (kind "constant"), or another gate',
    ),
    "one ratio, many bounds": (
        ["objective.ratio.level=sequence", "objective.clip.kind=flexec"],
        'objective.clip.kind "flexec" gives each token bounds of its own, objective.ratio.level "sequence" has one '
        'ratio per response; use level "token", or clip kind "constant", "log" or "stale"',
    ),
    "rescue without bounds": (
        ["objective.gate.rescue=0.1", "objective.clip.kind=none"],
        'objective.gate.rescue acts at the bounds, but objective.clip.kind is "none"; choose bounds, or turn it off',
    ),
    "dual clip at no bound": (
        ["objective.gate.dual_at_high=true", "objective.clip.kind=none"],
        'objective.gate.dual_at_high acts at the bounds, but objective.clip.kind is "none"; choose bounds, or turn it '
        "off",
    ),
    "bounds of one probability on the ratio of many": (
        ["objective.ratio.level=prefix", "objective.clip.kind=dcpo"],
        'objective.clip.kind "dcpo" bounds a token\'s own ratio by its probability, objective.ratio.level "prefix" '
        'compares everything up to the token; use clip kind "growing", or level "token"',
    ),
    "token gate on the ratio of many": (
        ["objective.ratio.level=prefix", "objective.gate.kind=aspo"],
        'objective.gate.kind "aspo" is defined on token ratios; set objective.ratio.level to "token"',
    ),
    "gmpo with dual clip at the bound": (
        ["objective.ratio.level=geometric", "objective.gate.dual_at_high=true"],
        'objective.ratio.level "geometric" bounds token ratios before it averages them (GMPO); it needs objective.gate '
        '= {kind = "ppo"} without dual clip or rescue',
    ),
    "gmpo with rescue": (
        ["objective.ratio.level=geometric", "objective.gate.rescue=0.1"],
        'objective.ratio.level "geometric" bounds token ratios before it averages them (GMPO); it needs objective.gate '
        '= {kind = "ppo"} without dual clip or rescue',
    ),
    "gmpo with dual clip": (
        ["objective.ratio.level=geometric", "objective.gate.dual=3"],
        'objective.ratio.level "geometric" bounds token ratios before it averages them (GMPO); it needs objective.gate '
        '= {kind = "ppo"} without dual clip or rescue',
    ),
    "token gate on a response's ratio": (
        ["objective.ratio.level=sequence_token", "objective.gate.kind=dppo", "objective.clip.kind=none"],
        'objective.gate.kind "dppo" is defined on token ratios; set objective.ratio.level to "token"',
    ),
    "token advantage on a response's ratio": (
        ["objective.ratio.level=sequence", "objective.shaping.entropy={}"],
        'objective.ratio.level "sequence" has one advantage per response, objective.shaping.entropy one per token; use '
        'level "sequence_token"',
    ),
    "token mask on a response's ratio": (
        ["objective.ratio.level=sequence", "objective.weights.high_entropy={}"],
        'objective.weights.high_entropy weighs single tokens, but at objective.ratio.level "sequence" the gradient of '
        'a response runs through all of its tokens; use level "sequence_token" or "token"',
    ),
    "token importance on a response's ratio": (
        ["objective.ratio.level=geometric", "objective.weights.tis={}"],
        'objective.weights.tis weighs single tokens, but at objective.ratio.level "geometric" the gradient of a '
        'response runs through all of its tokens; use level "sequence_token" or "token", or '
        'objective.weights.tis.level "sequence"',
    ),
    "a coin in the place of no bounds": (
        ["objective.weights.matched={}", "objective.clip.kind=none"],
        'objective.weights.matched drops as many tokens as bounds would, but objective.clip.kind is "none", which '
        'would drop none; set the clip whose control this is: "constant", "log", "flexec", "dcpo", "bapo", "archer", '
        '"growing", "stale", "closed_loop" or "closed_loop_flexec"',
    ),
    "a coin in the place of bounds that are off": (
        ["objective.weights.matched={}", "objective.clip.low=1.0", "objective.clip.high=inf"],
        "objective.weights.matched drops as many tokens as bounds would, but objective.clip.low and "
        "objective.clip.high turn both off; set those of the clip whose control this is, or remove the table",
    ),
    "a coin in the place of bounds that drop nothing": (
        ["objective.weights.matched={}", "objective.gate.kind=ce_gppo"],
        'objective.weights.matched drops as many tokens as bounds would, but objective.gate.kind "ce_gppo" drops none: '
        'what is beyond keeps a gradient; use gate "ppo", "aspo" or "up", or remove the table',
    ),
    "a closed loop over bounds that drop nothing": (
        ["objective.clip.kind=closed_loop", "objective.gate.kind=ce_gppo"],
        'objective.clip.kind "closed_loop" steers by the tokens that its bounds drop, but objective.gate.kind '
        '"ce_gppo" drops none: what is beyond keeps a gradient; use gate "ppo", "aspo" or "up"',
    ),
    "a coin in the place of bounds that act otherwise": (
        ["objective.weights.matched={}", "objective.gate.rescue=0.2"],
        "objective.weights.matched drops as many tokens as bounds would, but with objective.gate.rescue they do "
        "something else; leave it out, or remove the table",
    ),
    "a coin beside clip-cov's": (
        ["objective.weights={matched={}, clip_cov={}}"],
        "objective.weights.matched and objective.weights.clip_cov draw by the same lot, so that they would drop the "
        "same tokens, while Clip-Cov beside bounds drops others; remove one of the two tables",
    ),
    "dual clip at an upper bound that is off": (
        ["objective.gate.dual_at_high=true", "objective.clip.high=inf"],
        'objective.gate.dual_at_high acts at the upper bound, but objective.clip.kind "constant" has it turned off; '
        "set objective.clip.high to a number, or turn dual_at_high off",
    ),
    "a controller of a scale that is 0": (
        ["objective.controllers.negative_scale={}", "objective.weights.negative_scale={scale=0.0}"],
        "objective.controllers.negative_scale enlarges objective.weights.negative_scale.scale, which is 0 and stays "
        "so; set a scale above 0, or remove the controller",
    ),
    "a closed loop between lines that are one": (
        [
            "objective.clip={kind='closed_loop_flexec', upper_slope=0.0, upper_start=0.2, lower_slope=0.0, "
            "lower_start=0.2}"
        ],
        "objective.clip: the upper and the lower line are the constant distance standard 0.2, which leaves nothing to "
        'choose; change upper_start or lower_start, or set kind = "constant"',
    ),
    "a closed loop over bounds that act otherwise": (
        ["objective.clip.kind=closed_loop", "objective.gate.dual_at_high=true"],
        'objective.clip.kind "closed_loop" steers by the tokens that its bounds drop, but with '
        "objective.gate.dual_at_high they do something else; leave it out",
    ),
    "a closed loop whose bounds do not act": (
        ["objective.clip.kind=closed_loop_flexec", "objective.weights.matched={}"],
        "objective.weights.matched takes the effect of the bounds away by which objective.clip.kind "
        '"closed_loop_flexec" steers; remove the table, or use clip kind "constant", "log", "flexec", "dcpo", "bapo", '
        '"archer", "growing" or "stale"',
    ),
    "a closed loop of one update": (
        ["objective.clip.kind=closed_loop", "train.mini_batch_responses=16"],
        "objective.clip compares the policy with itself before a batch's first update, but there is one update per "
        "batch (train.mini_batch_responses 16 = all responses of a step); lower train.mini_batch_responses, or remove "
        "the table",
    ),
    "a closed loop of a response's ratio": (
        ["objective.clip.kind=closed_loop", "objective.ratio.level=geometric"],
        'objective.clip.kind "closed_loop" gives each token bounds of its own, objective.ratio.level "geometric" has '
        'one ratio per response; use level "token", or clip kind "constant", "log" or "stale"',
    ),
    "a closed loop's bound between a number and none": (
        ["objective.clip={kind='closed_loop', high_loose=inf}"],
        "objective.clip.high_loose is inf and high_tight 0.02: no bound is in the middle of the two; set high_loose to "
        "a number (a ratio seldom moves by 1), or both to inf to leave clip-high off",
    ),
    "a closed loop with nothing to choose": (
        ["objective.clip={kind='closed_loop', low_tight=0.2, low_loose=0.2, high_tight=inf, high_loose=inf}"],
        "objective.clip: low_tight = low_loose = 0.2 and high_tight = high_loose = inf leave nothing to choose; give a "
        'range, or set kind = "constant"',
    ),
    "a closed loop's range upside down": (
        ["objective.clip={kind='closed_loop', low_tight=0.5}"],
        "objective.clip.low_tight 0.5 is above low_loose 0.4",
    ),
    "a target with a place too many": (
        ["objective.clip={kind='closed_loop', loop={at=[0, 1], entropy=[1]}}"],
        "objective.clip.loop: 2 places and 1 entropies; give one entropy for each of `at`",
    ),
    "a target that goes back": (
        ["objective.clip={kind='closed_loop', loop={at=[0.5, 0.5], entropy=[1, 1]}}"],
        "objective.clip.loop: at must rise from point to point, found [0.5, 0.5]",
    ),
    "a target's steps as shares": (
        ["objective.clip={kind='closed_loop', loop={at=[0, 100], entropy=[1, 2]}}"],
        "objective.clip.loop: at are shares of the run and lie in 0 to 1, found [0.0, 100.0]; for step numbers set "
        'over = "steps"',
    ),
    "a target of no entropy": (
        ["objective.clip={kind='closed_loop', loop={entropy=[0.0]}}"],
        "objective.clip.loop: entropies are above 0, found [0.0]: no policy that samples has less",
    ),
    "mismatch corrected twice": (
        ["objective.weights.tis={}", "objective.weights.importance_mask={}"],
        "objective.weights.tis and objective.weights.importance_mask both multiply by old / behavior; the mismatch "
        "would be corrected twice; keep one",
    ),
    "mismatch in the ratio and in a weight": (
        ["objective.ratio.anchor=behavior", "objective.weights.tis={}"],
        'objective.ratio.anchor "behavior" has the trainer-vLLM mismatch in the ratio already; remove '
        'objective.weights.tis and importance_mask, or set the anchor to "old" (the decoupled form)',
    ),
    "tis out of order": (["objective.weights.tis={floor=3}"], "objective.weights.tis.floor 3 is above cap 2"),
    "erc out of order": (["objective.weights.erc={low=2}"], "objective.weights.erc.low 2 is above high 1.05"),
    "rejection out of order": (
        ["objective.weights.sequence_rejection={low=1.1}"],
        "objective.weights.sequence_rejection.low 1.1 is above high 1.001",
    ),
    "bapo out of order": (
        ["objective.clip={kind='bapo', low_start=0.9}"],
        "objective.clip.low_start 0.9 is above low_stop 0.8",
    ),
    "cispo out of order": (
        ["objective.gate={kind='cispo', floor=6}", "objective.clip.kind=none"],
        "objective.gate.floor 6 is above cap 5",
    ),
    "flexec below 1": (
        ["objective.clip={kind='flexec', upper_start=0.1}"],
        "objective.clip.upper_slope -0.25 + upper_start 0.1 = -0.15 is the distance at p = 1 and must not be below 0; "
        "raise one of the two",
    ),
    "controller of nothing": (
        ["objective.controllers.aer={}"],
        "objective.controllers.aer moves objective.auxiliary.entropy.coefficient; add that table",
    ),
    "two controllers of one number": (
        ["objective.auxiliary.entropy={coefficient=0}", "objective.controllers={aer={}, entropy_coefficient={}}"],
        "objective.controllers.entropy_coefficient and aer both move the same coefficient; keep one",
    ),
    "controller starts outside": (
        ["objective.auxiliary.entropy={coefficient=0.01}", "objective.controllers.entropy_coefficient={}"],
        "objective.auxiliary.entropy.coefficient 0.01 is where the controller starts, but "
        "objective.controllers.entropy_coefficient keeps it between 0 and 0.005; start inside",
    ),
    "positive tokens turned round": (
        ["objective.weights.positive_scale={scale=0.05}", "objective.controllers.positive_scale={step=0.1}"],
        "objective.weights.positive_scale.scale 0.05 minus objective.controllers.positive_scale.step 0.1 is not above "
        "0; positive tokens would be punished; lower the step",
    ),
    "positive scale missing": (
        ["objective.controllers.positive_scale={}"],
        "objective.controllers.positive_scale moves objective.weights.positive_scale.scale; add that table",
    ),
    "gate of nothing": (
        ["objective.controllers.stare={}"],
        "objective.controllers.stare turns objective.weights.stare on and off; add that table",
    ),
    "reset of no reference": (
        ["objective.controllers.reference_reset={every_steps=3}"],
        "objective.controllers.reference_reset renews the reference of objective.auxiliary.kl; add that table",
    ),
    "reset without a trigger": (
        ["objective.controllers.reference_reset={}"],
        "objective.controllers.reference_reset: set every_steps or kl_above, or remove the table",
    ),
    "two punishments for length": (
        ["reward.overlong={}", "reward.truncated_factor=0"],
        "reward.overlong and reward.truncated_factor 0 both punish a response that reaches the limit; keep one: "
        "reward.overlong=false or reward.truncated_factor=1.0",
    ),
    "group of one": (
        ["train.samples_per_prompt=1", "train.prompts_per_step=16"],
        'objective.advantage.method "dr_grpo" compares the responses to one prompt, but train.samples_per_prompt is 1 '
        'and every advantage would be 0; sample more, or use "reinforce_pp"',
    ),
    "dynamic sampling of groups of one": (
        [
            *("train.samples_per_prompt=1", "train.prompts_per_step=16", "objective.advantage.method=reinforce_pp"),
            "objective.sampler.kind=dynamic",
        ],
        'objective.sampler.kind "dynamic" keeps groups whose scores differ, but train.samples_per_prompt is 1 and none '
        'ever does; sample more, or use kind "all"',
    ),
    "too few prompts to fill a step": (
        ["objective.sampler={kind='dynamic', prompts_per_generation=1, max_generations=3}"],
        "objective.sampler.prompts_per_generation 1 x max_generations 3 is below train.prompts_per_step 4: no step "
        "could be filled; raise one of them",
    ),
    "dynamic sampling of a certain coin": (
        ["objective.sampler.kind=dynamic", "reward.verifier={kind='random', p=1}"],
        'reward.verifier gives every response the same number, and objective.sampler.kind "dynamic" drops such groups: '
        'no step could be filled; use kind "all"',
    ),
    "a wrong answer that is correct": (
        ["reward.wrong=5.0"],
        "reward.wrong 5 is not below reward.correct_from 1: what a wrong answer gets would be correct; set "
        "reward.correct_from to what the verifier gives a right answer",
    ),
    "guided by a coin": (
        ["objective.auxiliary.guided={}", "reward.verifier.kind=random"],
        "objective.auxiliary.guided moves right answers one way and wrong ones the other, but reward.verifier.kind "
        '"random" does not look at the answer; use a verifier that does, or remove the table',
    ),
    "kl-cov with one update": (
        ["objective.auxiliary.kl_cov={}", "train.mini_batch_responses=16"],
        "objective.auxiliary.kl_cov compares the policy with itself before a batch's first update, but there is one "
        "update per batch (train.mini_batch_responses 16 = all responses of a step); lower train.mini_batch_responses, "
        "or remove the table",
    ),
}


NEEDED_ELSEWHERE = {  # without these the case has another problem; the text does not speak of them
    "objective.clip.kind=none",
    "objective.advantage.method=reinforce_pp",
    "objective.auxiliary.entropy={coefficient=0}",
    "train.prompts_per_step=16",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    overrides, text = REFUSED[case]
    (problem,) = problems_of(write_config(tmp_path), *overrides)
    assert problem.startswith(f"{text} [override ")
    unnamed = {override for override in overrides if f"override {override!r}" not in problem}
    assert unnamed <= NEEDED_ELSEWHERE


def test_gates_that_a_refusal_proposes_are_taken(tmp_path: Path) -> None:
    for gate, clip in [
        *((gate, "constant") for gate in ("ppo", "ce_gppo", "aspo")),
        *((gate, "none") for gate in ("ppo", "up", "cispo", "sapo", "dppo")),
    ]:
        objective = load_small(tmp_path, f"objective.gate.kind={gate}", f"objective.clip.kind={clip}").objective
        assert (objective.gate.kind, objective.clip.kind) == (gate, clip)


ACCEPTED = {
    "response-level importance at a response's ratio": [
        "objective.ratio.level=sequence",
        "objective.weights.tis={level='sequence'}",
        "objective.weights.sequence_rejection={}",
        "objective.weights.opsm={}",
    ],
    "every token rule at sequence_token": [
        "objective.ratio.level=sequence_token",
        "objective.weights={tis={}, high_entropy={}, clip_cov={}, steer={}, clip_b={}, clip_v={}, erc={}}",
        "objective.shaping.entropy={}",
    ],
    "every token rule at prefix": [
        *("objective.ratio.level=prefix", "objective.clip.kind=growing"),
        "objective.weights={tis={}, high_entropy={}, clip_cov={}, steer={}, clip_b={}, clip_v={}, erc={}}",
        "objective.shaping.entropy={}",
    ],
    "cispo's gradient is the token's own at any level": [
        *("objective.ratio.level=sequence", "objective.gate.kind=cispo", "objective.clip.kind=none"),
        "objective.weights={high_entropy={}, tis={}}",
    ],
    "rejection by k2 has no lower bound": ["objective.weights.sequence_rejection={statistic='k2', high=0.01}"],
    "reinforce++ needs no group": [
        *("train.samples_per_prompt=1", "train.prompts_per_step=16", "objective.advantage.method=reinforce_pp"),
    ],
    "a fair coin under dynamic sampling": ["objective.sampler.kind=dynamic", "reward.verifier.kind=random"],
    "a closed loop of one update, anchored at the engine": [
        *("objective.clip.kind=closed_loop", "objective.ratio.anchor=behavior", "train.mini_batch_responses=16"),
    ],
    "a coin of one update, anchored at the engine": [
        *("objective.weights.matched={}", "objective.ratio.anchor=behavior", "train.mini_batch_responses=16"),
    ],
    "a closed loop of clip-low alone": ["objective.clip={kind='closed_loop', high_tight=inf, high_loose=inf}"],
    "both sides off": ["objective.clip.low=1.0", "objective.clip.high=inf"],
    "several updates for kl-cov": ["objective.auxiliary.kl_cov={}", "objective.clip.kind=none"],
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(tmp_path: Path, case: str) -> None:
    load_small(tmp_path, *ACCEPTED[case])


def test_defaults_are_the_clipping_papers() -> None:
    objective = ObjectiveConfig()
    assert (objective.advantage, objective.clip) == (DrGrpo(), ConstantClip(low=0.2, high=0.2))
    assert objective.gate == PpoGate(dual=math.inf)
    assert not objective.needs_survey
    assert SequenceRejection().statistic == "k1"


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"objective.weights.{name}={{}}"] for name in ("high_entropy", "clip_cov", "steer", "clip_b", "clip_v")),
        ["objective.auxiliary.kl_cov={}"],
        ["objective.clip.kind=bapo"],
        ["objective.clip.kind=closed_loop"],
        ["objective.clip.kind=closed_loop_flexec"],
        ["objective.weights.matched={}"],
    ],
)
def test_what_looks_at_the_mini_batch_needs_a_survey(tmp_path: Path, overrides: list[str]) -> None:
    assert load_small(tmp_path, *overrides).objective.needs_survey


@pytest.mark.parametrize("name", ["tis", "opsm", "erc", "importance_mask", "sequence_rejection", "positive_scale"])
def test_what_knows_its_token_alone_needs_none(tmp_path: Path, name: str) -> None:
    assert not load_small(tmp_path, f"objective.weights.{name}={{}}").objective.needs_survey


def test_default_tags_leave_errors_readable(tmp_path: Path) -> None:
    assert problems_of(write_config(tmp_path), "objective.clip.hihg=1", "objective.gate.dual=0.5") == [
        "objective.clip.hihg: unknown key; did you mean objective.clip.high? [override 'objective.clip.hihg=1']",
        "objective.gate.dual: expected a number > 1, found 0.5 (float) [override 'objective.gate.dual=0.5']",
    ]
    assert problems_of(write_config(tmp_path), "objective.clip.dual=3", "objective.kl.coefficient=0.1") == [
        "objective.clip.dual: unknown key; did you mean objective.gate.dual? [override 'objective.clip.dual=3']",
        "objective.kl: unknown key; did you mean objective.auxiliary.kl? [override 'objective.kl.coefficient=0.1']",
    ]
    assert problems_of(write_config(tmp_path), "objective.sampler={max_generations=3}") == [
        'objective.sampler.max_generations: unknown key; it belongs to objective.sampler.kind = "dynamic" '
        "[override 'objective.sampler={max_generations=3}']"
    ]
