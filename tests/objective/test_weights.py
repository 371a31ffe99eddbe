import math
from typing import ClassVar, Literal

import pytest
import torch

from megarl.config.facts import NoFormulaError, RuleName
from megarl.config.weight import WeightsConfig, WeightVariant
from megarl.objective.tokens import Controls
from megarl.objective.weights import token_weights
from megarl.rules import Rule
from tests.objective.tokens import make_tokens


def weigh(config, tokens, *, positive_scale=1.0, negative_scale=1.0):
    controls = Controls(step=1, seed=0, positive_scale=positive_scale, negative_scale=negative_scale)
    weight_T, rule_T = token_weights(WeightsConfig(**config), tokens, controls, tokens.advantage_T)
    assert rule_T.dtype == torch.int32
    assert weight_T.dtype == tokens.logp_T.dtype
    assert not weight_T.requires_grad
    return weight_T.tolist(), rule_T.tolist()


def test_nothing_configured_weighs_one():
    tokens = make_tokens([2, 0, 1], advantage=[-1.0, 1.0, 0.0])
    assert weigh({}, tokens, positive_scale=3.0) == ([1.0] * 3, [0] * 3)


def test_opsm_drops_a_response_that_became_unlikely_where_the_advantage_is_negative():
    # Means of old - logp: 0.6 (A < 0), 0.6 (A > 0), 0.5 (A < 0, at the threshold), -1 (A < 0).
    tokens = make_tokens(
        [2, 1, 2, 1],
        logp=[-2.2, -1.0, -1.6, -1.25, -1.75, 0.0],
        old_logp=[-1.0] * 6,
        advantage=[-1.0, -1.0, 2.0, -1.0, -1.0, -1.0],
    )
    weight, rule = weigh({"opsm": {"threshold": 0.5}}, tokens)
    assert weight == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert rule == [int(Rule.OPSM)] * 2 + [0] * 4


def test_opsm_looks_at_the_sign_of_each_token():
    tokens = make_tokens([3], logp=-3.0, old_logp=-1.0, advantage=[-1.0, 0.0, 1.0])
    assert weigh({"opsm": {}}, tokens)[0] == [0.0, 1.0, 1.0]


def test_erc_keeps_entropy_ratios_strictly_inside():
    # (0.5 + 1e-8) / (1 + 1e-8) is not below 0.5, and 1.5 likewise only to rounding; 0 over 0 is 1.
    tokens = make_tokens([6], entropy=[0.49, 0.6, 1.0, 1.49, 1.51, 0.0], old_entropy=[1.0] * 5 + [0.0])
    weight, rule = weigh({"erc": {"low": 0.5, "high": 1.5}}, tokens)
    assert weight == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert rule == [int(Rule.ERC), 0, 0, 0, int(Rule.ERC), 0]
    nearly = make_tokens([3], entropy=[1.0, 1.0 + 1e-5, 1.0 + 1e-4], old_entropy=1.0)
    assert weigh({"erc": {"low": 0.5, "high": 1.0}}, nearly)[0] == [1.0, 1.0, 0.0]


def test_erc_offset_keeps_vanishing_entropies():
    tokens = make_tokens([1], entropy=1e-10, old_entropy=2e-10)
    assert weigh({"erc": {}}, tokens)[0] == [1.0]
    assert (1e-10 + 1e-8) / (2e-10 + 1e-8) > 0.95


def test_erc_drops_what_is_not_a_number():
    tokens = make_tokens([1], entropy=math.nan)
    assert weigh({"erc": {}}, tokens) == ([0.0], [int(Rule.ERC)])


def test_positive_scale_is_the_controllers_number():
    tokens = make_tokens([3], advantage=[1.0, 0.0, -1.0])
    assert weigh({"positive_scale": {"scale": 1.0}}, tokens, positive_scale=0.75)[0] == [0.75, 1.0, 1.0]


def test_negative_scale_is_the_controllers_number():
    tokens = make_tokens([3], advantage=[1.0, 0.0, -1.0])
    assert weigh({"negative_scale": {}}, tokens, negative_scale=0.25) == ([1.0, 1.0, 0.25], [0] * 3)
    assert weigh({"negative_scale": {}}, tokens, negative_scale=0.0)[0] == [1.0, 1.0, 0.0]
    both = weigh({"negative_scale": {}, "positive_scale": {}}, tokens, positive_scale=0.5, negative_scale=2.0)
    assert both[0] == [0.5, 1.0, 2.0]
    assert weigh({}, tokens, negative_scale=2.0)[0] == [1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_multiply_and_flags_add(dtype):
    tokens = make_tokens(
        [2, 1],
        dtype=dtype,
        logp=torch.tensor([-3.0, -3.0, -1.0], requires_grad=True),
        entropy=[2.0, 1.0, 1.0],
        advantage=[-1.0, -1.0, 1.0],
    )
    config = {"opsm": {}, "erc": {}, "positive_scale": {"scale": 1.0}}
    weight, rule = weigh(config, tokens, positive_scale=1.5)
    assert weight == [0.0, 0.0, 1.5]
    assert rule == [int(Rule.OPSM | Rule.ERC), int(Rule.OPSM), 0]


def test_a_micro_batch_without_tokens():
    tokens = make_tokens([0, 0])
    assert weigh({"opsm": {}, "erc": {}, "positive_scale": {}}, tokens) == ([], [])


def test_a_weight_that_nothing_computes_is_not_left_out():
    class Made(WeightVariant):
        tells_tokens_apart: ClassVar[bool] = True
        needs_survey: ClassVar[bool] = False
        mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
        compares_updates: ClassVar[bool] = False
        rules: ClassVar[tuple[RuleName, ...]] = ()

    class Wider(WeightsConfig):
        made: Made | None = None

    tokens = make_tokens([1])
    with pytest.raises(NoFormulaError, match=r"^Made is on, but the weight of tokens has no formula for it"):
        token_weights(Wider(made=Made()), tokens, Controls(step=1, seed=0), tokens.advantage_T)
