import math
import random
from typing import ClassVar, Literal

import pytest
import torch
import torch.distributed as dist

from megarl.config.facts import NoFormulaError, RuleName
from megarl.config.objective import ObjectiveConfig
from megarl.config.weight import WeightsConfig, WeightVariant
from megarl.objective.choices import choose, needs_choices
from megarl.objective.tokens import Choices, TokenBatch
from megarl.rules import Rule
from tests.dist.gloo import run_on_ranks
from tests.objective.choosing import CONTROLS, batch_of, by_token, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank, on_ranks, raised_on_ranks
from tests.objective.tokens import make_tokens

LENGTHS = [13, 1, 40, 0, 25, 8, 31, 17, 2, 29]
EVERYTHING = {
    "shaping": {"entropy": {}},
    "clip": {"kind": "bapo"},
    "weights": {
        "tis": {"normalise": True},
        "sequence_rejection": {"low": 0.9, "high": 1.1},
        "high_entropy": {"fraction": 0.4},
        "clip_cov": {"fraction": 0.05, "low": 0.1},
        "steer": {},
        "clip_b": {"mu": 0.7},
        "clip_v": {"mu": 0.5, "max_fraction": 0.05},
        "stare": {"negative": 0.8},
        "entropy_flow": {},
    },
    "auxiliary": {"kl_cov": {"fraction": 0.1}},
}
MASKS = {
    "clip": {"kind": "stale"},
    "weights": {
        "importance_mask": {"level": "geometric", "low": 0.8, "high": 1.2},
        "steer": {"shape": "linear"},
        "clip_cov": {"fraction": 0.1, "low": 0.1},
    },
}


def layouts(samples):
    """One to four ranks, shuffled, one rank without tokens, micro-batches of any size."""
    rng = random.Random(1)
    for num_ranks in (1, 2, 3, 4):
        shuffled = rng.sample(samples, len(samples))
        cuts = sorted(rng.randrange(len(samples) + 1) for _ in range(num_ranks - 1))
        yield [shuffled[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(samples)], strict=True)]
    yield [[sample for sample in samples if not sample["logp"]], samples]


@pytest.mark.parametrize("distinct", [None, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize("config", [EVERYTHING, MASKS], ids=["everything", "masks"])
def test_every_layout_chooses_the_same_tokens_and_weights(config, distinct):
    objective = ObjectiveConfig.model_validate(config)
    samples = random_samples(LENGTHS, seed=9, distinct=distinct)
    whole = batch_of(samples)
    expected = choose_of(config, whole)
    acted = 0
    for flags in expected.rule_T.tolist():
        acted |= flags
    if config is EVERYTHING:
        assert acted == Rule.TIS | Rule.SEQUENCE_REJECTION | Rule.LOW_ENTROPY | Rule.CLIP_COV | (
            Rule.CLIP_B | Rule.CLIP_V | Rule.KL_COV
        )
    else:
        assert acted == Rule.IMPORTANCE_MASK | Rule.CLIP_COV

    def run(share, reduce):
        # Micro-batches of one response each, concatenated, as a policy rank does.
        tokens = TokenBatch.concatenate([batch_of([sample]) for sample in share]) if share else batch_of([])
        choices = choose(objective, tokens, CONTROLS, reduce)
        return by_token(tokens, choices), (choices.bapo_bounds, choices.stale_above)

    num_calls = set()
    for shares in layouts(samples):
        results, calls = on_ranks(run, shares)
        together = {}
        for chosen, bounds in results:
            together |= chosen
            assert bounds == (expected.bapo_bounds, expected.stale_above)
        assert together == by_token(whole, expected)  # to the last bit
        assert all(rank == calls[0] for rank in calls)
        num_calls.add(len(calls[0]))
    assert len(num_calls) == 1


def gloo_choices(shares):
    tokens = batch_of(shares[dist.get_rank()])

    class Gloo:
        def sum(self, values):
            reduced = values.clone()
            dist.all_reduce(reduced)
            return reduced

        def max(self, values):
            reduced = values.clone()
            dist.all_reduce(reduced, op=dist.ReduceOp.MAX)
            return reduced

    choices = choose(ObjectiveConfig.model_validate(EVERYTHING), tokens, CONTROLS, Gloo())
    return by_token(tokens, choices), (choices.bapo_bounds, choices.stale_above)


def test_gloo_ranks_choose_what_one_rank_chooses():
    samples = random_samples(LENGTHS, seed=2)
    whole = batch_of(samples)
    expected = choose_of(EVERYTHING, whole)
    results = run_on_ranks(gloo_choices, 3, [samples[5:], samples[:5], []])
    assert {**results[0][0], **results[1][0], **results[2][0]} == by_token(whole, expected)
    assert {bounds for _, bounds in results} == {(expected.bapo_bounds, expected.stale_above)}


def test_the_product_of_the_rules_taken_alone():
    samples = random_samples(LENGTHS, seed=4)
    tokens = batch_of(samples)
    together = choose_of(EVERYTHING, tokens)
    product_T = torch.ones_like(together.weight_T)
    flags_T = torch.zeros_like(together.rule_T)
    for name, table in EVERYTHING["weights"].items():
        alone = choose_of({**EVERYTHING, "weights": {name: table}, "auxiliary": {}}, tokens)
        product_T, flags_T = product_T * alone.weight_T, flags_T | alone.rule_T
    alone = choose_of({**EVERYTHING, "weights": {}}, tokens)
    assert torch.allclose(together.weight_T, product_T, rtol=1e-6)
    assert torch.equal(together.rule_T, flags_T | alone.rule_T)
    assert torch.equal(together.kl_cov_T, alone.kl_cov_T)


def test_collectives_are_few_and_do_not_grow_with_the_tokens():
    _, (few,) = on_ranks(lambda share, reduce: choose_of(EVERYTHING, share, reduce), [batch_of(random_samples([9]))])
    _, (many,) = on_ranks(
        lambda share, reduce: choose_of(EVERYTHING, share, reduce), [batch_of(random_samples([2000] * 20))]
    )
    assert len(many) <= 48
    assert sum(math.prod(shape) * 8 for _, shape, _ in many) < 12 * 2**20
    assert max(math.prod(shape) for _, shape, _ in few) == max(math.prod(shape) for _, shape, _ in many)


def test_nothing_configured_means_no_collective_and_no_effect():
    quiet = {"weights": {"opsm": {}, "erc": {}, "positive_scale": {}}}
    tokens = make_tokens([3], logp=math.nan)
    (choices,), (calls,) = on_ranks(lambda share, reduce: choose_of(quiet, share, reduce), [tokens])
    assert calls == []
    assert choices.weight_T.tolist() == [1.0] * 3
    assert choices.rule_T.tolist() == [0] * 3
    assert not needs_choices(ObjectiveConfig.model_validate(quiet))
    assert needs_choices(ObjectiveConfig.model_validate({"weights": {"tis": {}}}))
    assert needs_choices(ObjectiveConfig.model_validate({"clip": {"kind": "bapo"}}))


def test_no_rank_has_tokens():
    found, calls = on_ranks(lambda share, reduce: choose_of(EVERYTHING, share, reduce), [batch_of([])] * 2)
    for choices in found:
        assert choices.weight_T.shape == choices.rule_T.shape == choices.kl_cov_T.shape == (0,)
        assert choices.kl_cov_T.dtype == torch.bool
        assert choices.bapo_bounds == (0.6, 1.2)
    assert [len(rank) for rank in calls] == [1, 1]


def test_choices_are_detached_and_of_the_log_probs_dtype():
    for dtype in (torch.float32, torch.float64):
        logp_T = torch.tensor([-1.0, -2.0, -3.0, -0.5], dtype=dtype, requires_grad=True)
        tokens = make_tokens([2, 2], dtype=dtype, logp=logp_T, entropy=logp_T.square(), behavior_logp=-1.0)
        choices = choose_of(EVERYTHING, tokens)
        assert isinstance(choices, Choices)
        assert choices.weight_T.dtype == dtype
        assert choices.rule_T.dtype == torch.int32
        assert not choices.weight_T.requires_grad


@pytest.mark.parametrize("column", ["logp", "entropy", "expected_q", "old_logp", "advantage"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_every_rank_stops_and_the_one_with_the_number_names_its_sample(column, bad):
    good, broken = random_samples([2, 3], seed=1)
    broken[column][1] = bad
    texts = raised_on_ranks(
        lambda share, reduce: choose_of({"weights": {"clip_b": {}}}, batch_of(share), reduce), [[good], [broken], []]
    )
    assert f"{column} of 1 response tokens, in samples [107] of this rank" in texts[1]
    assert f"{column} of 1 response tokens, on other ranks" in texts[0]
    assert f"{column} of 1 response tokens, on other ranks" in texts[2]


def test_anchor_behavior_needs_its_log_probs():
    config = {"ratio": {"anchor": "behavior"}, "clip": {"kind": "bapo"}}
    with pytest.raises(ValueError, match="no behavior_logp_T"):
        choose_of(config, make_tokens([2]))
    assert choose_of(config, make_tokens([2], behavior_logp=-1.0)).bapo_bounds == (0.6, 1.2)


def test_a_weight_that_nothing_computes_is_not_left_out():
    class Made(WeightVariant):
        tells_tokens_apart: ClassVar[bool] = True
        needs_survey: ClassVar[bool] = True
        mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
        compares_updates: ClassVar[bool] = False
        rules: ClassVar[tuple[RuleName, ...]] = ()

    class WiderWeights(WeightsConfig):
        made: Made | None = None

    class Wider(ObjectiveConfig):
        weights: WiderWeights = WiderWeights()

    objective = Wider(weights=WiderWeights(made=Made()))
    assert objective.needs_survey
    with pytest.raises(NoFormulaError, match=r"^Made is on, but the choice of tokens has no formula for it"):
        choose(objective, make_tokens([2]), CONTROLS, SingleRank())


def test_ratios_that_have_moved_by_rounding_alone_make_no_token_stale():
    def above(moved: float) -> float | None:
        # Nine of ten tokens are where the policy is certain; under one layout their ratio is 1, under another nearly.
        old, new = [-1e-3] * 18 + [-2.0] * 2, [moved - 1e-3] * 18 + [-1.9, -2.1]
        return choose_of({"clip": {"kind": "stale"}}, make_tokens(logp=new, old_logp=old)).stale_above

    assert above(0.0) == above(1e-7) == above(-1e-6) == 0.0
    assert above(1e-3) == pytest.approx(1e-3)
