"""The closed loop's search: against every distinct bound, in float64, under any layout, and in a real step."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.choices import choose
from megarl.objective.closed_loop import wanted_share
from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.objective.loss import compute_token_loss
from megarl.objective.tokens import Choices, Controls, TokenBatch
from megarl.objective.update_result import UpdateResult, merge_results
from megarl.telemetry.metrics import to_values
from tests.objective.choosing import batch_of, by_token, random_samples
from tests.objective.simulated_ranks import SingleRank, on_ranks
from tests.objective.test_choices import layouts
from tests.objective.tokens import make_tokens

RANGE = {"low_tight": 0.02, "low_loose": 0.4, "high_tight": 0.03, "high_loose": 0.5}
CLOSED = {"clip": {"kind": "closed_loop", **RANGE, "loop": {"gain": 1.0, "band": 0.0}}}
FLEXEC = {"clip": {"kind": "closed_loop_flexec", "loop": {"gain": 1.0, "band": 0.0}}}


def controls_for(wanted: float, *, knob: float = 0.5, entropy: float = 1.0) -> Controls:
    """Where the loop asks for this share: gain 1, target 1, no drift."""
    loop = LoopControls(target=1.0, entropy=entropy, offset=wanted - (1.0 - entropy), knob=knob)
    return Controls(step=3, seed=0, loop=loop)


def choose_loop(objective: dict[str, Any], tokens: TokenBatch, controls: Controls) -> LoopChoice:
    found = choose(ObjectiveConfig.model_validate(objective), tokens, controls, SingleRank()).loop
    assert found is not None
    return found


def typical_tokens(size: int, *, seed: int) -> TokenBatch:
    """As in the clip paper: what clip-low can drop lowers the entropy, what clip-high can drop raises it. float64."""
    generator = torch.Generator().manual_seed(seed)
    advantage_T = torch.where(torch.rand(size, generator=generator) < 0.5, 1.0, -1.0).double()
    move_T = 0.6 * torch.randn(size, generator=generator, dtype=torch.float64)
    logp_T = -2.0 - torch.rand(size, generator=generator, dtype=torch.float64)
    # Q = p (log p + H) is below 0 < N for these: a token of little probability. Then b = r A w (N - Q) has A's sign.
    return make_tokens(
        [size],
        logp=logp_T,
        old_logp=logp_T - move_T,
        entropy=1.0,
        expected_q=0.1,
        advantage=advantage_T,
        weight=1.0 / size,
    )


def any_tokens(size: int, *, seed: int) -> TokenBatch:
    """Contributions of either sign on both sides."""
    tokens = typical_tokens(size, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    return tokens.replace(expected_q_T=torch.randn(size, generator=generator, dtype=torch.float64))


def budget_at(tokens: TokenBatch, knob: float) -> float:
    """B by its definition, from RANGE."""
    low = (1 - knob) * RANGE["low_loose"] + knob * RANGE["low_tight"]
    high = (1 - knob) * RANGE["high_tight"] + knob * RANGE["high_loose"]
    ratio_T = (tokens.logp_T - tokens.old_logp_T).exp()
    low_T = (tokens.advantage_T < 0) & (ratio_T < 1 - low)
    high_T = (tokens.advantage_T > 0) & (ratio_T > 1 + high)
    return float(contributions(tokens)[~(low_T | high_T)].sum())


def contributions(tokens: TokenBatch) -> Tensor:
    ratio_T = (tokens.logp_T - tokens.old_logp_T).exp()
    gap_T = tokens.expected_q_T - tokens.logp_T.exp() * (tokens.logp_T + tokens.entropy_T)
    return tokens.weight_T * ratio_T * tokens.advantage_T * gap_T


def critical_knobs(tokens: TokenBatch) -> list[float]:
    """Where a token passes its bound, for every distinct ratio in the range."""
    found = set()
    for ratio, advantage in zip(
        (tokens.logp_T - tokens.old_logp_T).exp().tolist(), tokens.advantage_T.tolist(), strict=True
    ):
        if advantage < 0:
            knob = (RANGE["low_loose"] - (1 - ratio)) / (RANGE["low_loose"] - RANGE["low_tight"])
        else:
            knob = (ratio - 1 - RANGE["high_tight"]) / (RANGE["high_loose"] - RANGE["high_tight"])
        if 0 < knob < 1:
            found.add(knob)
    return sorted(found)


def all_budgets(tokens: TokenBatch) -> list[float]:
    """B between every two neighbours, from knob 0 to 1: every value that it has."""
    edges = [0.0, *critical_knobs(tokens), 1.0]
    return [budget_at(tokens, (first + last) / 2) for first, last in pairwise(edges)]


def test_the_budget_is_constant_between_ratios_and_rises_in_the_typical_case() -> None:
    tokens = typical_tokens(100, seed=1)
    edges = [0.0, *critical_knobs(tokens), 1.0]
    assert len(edges) > 20
    for first, last in pairwise(edges):
        inside = [budget_at(tokens, first + (last - first) * part) for part in (0.01, 0.3, 0.7, 0.99)]
        assert max(inside) == min(inside)
    values = all_budgets(tokens)
    assert all(after > before for before, after in pairwise(values))
    other = all_budgets(any_tokens(60, seed=1))
    assert any(after > before for before, after in pairwise(other))
    assert any(after < before for before, after in pairwise(other))


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_the_best_of_all_bounds_in_the_range(seed: int) -> None:
    tokens = typical_tokens(150, seed=seed)
    values, size = all_budgets(tokens), float(contributions(tokens).abs().sum())
    for wanted in (-1.0, -0.3, *(values[at] / size + 1e-4 for at in (3, len(values) // 2, -4)), 0.4, 1.0):
        found = choose_loop(CLOSED, tokens, controls_for(wanted))
        assert found.wanted == pytest.approx(wanted)
        assert found.size == pytest.approx(size)
        assert found.predicted * size == pytest.approx(budget_at(tokens, found.knob), rel=1e-9)
        best = min(abs(value / size - wanted) for value in values)
        assert abs(found.predicted - wanted) == pytest.approx(best, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_where_the_budget_is_not_monotone_it_finds_a_place_where_it_passes(seed: int) -> None:
    tokens = any_tokens(150, seed=seed)
    size = float(contributions(tokens).abs().sum())
    ends = sorted((budget_at(tokens, 0.0) / size, budget_at(tokens, 1.0) / size))
    for part in (0.2, 0.5, 0.8):
        wanted = ends[0] + part * (ends[1] - ends[0])
        found = choose_loop(CLOSED, tokens, controls_for(wanted))
        largest = float(contributions(tokens).abs().max()) / size
        assert abs(found.predicted - wanted) <= largest


@pytest.mark.parametrize("objective", [CLOSED, FLEXEC], ids=["constant", "flexec"])
def test_what_it_foresees_is_the_budget_of_the_loss(objective: dict[str, Any]) -> None:
    tokens = any_tokens(200, seed=3)
    for wanted in (-0.2, 0.0, 0.1):
        controls = controls_for(wanted)
        config = ObjectiveConfig.model_validate(objective)
        choices = choose(config, tokens, controls, SingleRank())
        loss = compute_token_loss(config, controls, tokens, choices)
        budget = (loss.coefficient_T.double() * (tokens.expected_q_T - tokens.q_T)).sum()
        assert choices.loop is not None
        assert choices.loop.predicted * choices.loop.size == pytest.approx(float(budget), rel=1e-9)


def test_other_weights_and_a_dual_clip_are_foreseen_too() -> None:
    objective = {
        **CLOSED,
        "gate": {"dual": 1.2},
        "weights": {"high_entropy": {"fraction": 0.5}, "positive_scale": {"scale": 1.5}, "erc": {"high": 1.2}},
        "auxiliary": {"kl_cov": {"fraction": 0.1}, "entropy": {"coefficient": 0.1}},
    }
    tokens = any_tokens(200, seed=4)
    generator = torch.Generator().manual_seed(0)
    tokens = tokens.replace(entropy_T=1.0 + 0.2 * torch.randn(200, generator=generator, dtype=torch.float64))
    config = ObjectiveConfig.model_validate(objective)
    controls = controls_for(0.0)
    choices = choose(config, tokens, controls, SingleRank())
    loss = compute_token_loss(config, controls, tokens, choices)
    budget = (loss.coefficient_T.double() * (tokens.expected_q_T - tokens.q_T)).sum()
    assert choices.loop is not None
    assert choices.loop.predicted * choices.loop.size == pytest.approx(float(budget), rel=1e-9)


@pytest.mark.parametrize("objective", [CLOSED, FLEXEC], ids=["constant", "flexec"])
@pytest.mark.parametrize("wanted", [-0.3, 0.0, 0.3])
def test_a_gradient_step_changes_the_entropy_as_foreseen(objective: dict[str, Any], wanted: float) -> None:
    """States with logits of their own and a plain gradient step: the entropies' sum moves by rate * share * size."""
    generator = torch.Generator().manual_seed(5)
    states, actions = 80, 7
    old_SV = 1.5 * torch.randn(states, actions, generator=generator, dtype=torch.float64)
    now_SV = (old_SV + 0.4 * torch.randn(states, actions, generator=generator, dtype=torch.float64)).requires_grad_()
    action_S = torch.multinomial(old_SV.softmax(-1), 1, generator=generator)
    logp_SV = now_SV.log_softmax(-1)
    entropy_S = -(logp_SV.exp() * logp_SV).sum(-1)
    tokens = make_tokens(
        [states],
        logp=logp_SV.gather(-1, action_S)[:, 0],
        old_logp=old_SV.log_softmax(-1).gather(-1, action_S)[:, 0],
        entropy=entropy_S,
        old_entropy=entropy_S.detach(),
        expected_q=(logp_SV.exp().square() * (logp_SV + entropy_S[:, None])).sum(-1).detach(),
        advantage=torch.where(torch.rand(states, generator=generator) < 0.5, 1.0, -1.0).double(),
        weight=1.0 / states,
    )
    config, controls = ObjectiveConfig.model_validate(objective), controls_for(wanted)
    choices = choose(config, tokens, controls, SingleRank())
    compute_token_loss(config, controls, tokens, choices).loss.backward()
    assert now_SV.grad is not None
    rate = 1e-4
    moved_SV = (now_SV - rate * now_SV.grad).log_softmax(-1)
    change = float((-(moved_SV.exp() * moved_SV).sum() - entropy_S.sum()).detach()) / rate
    assert choices.loop is not None
    foreseen = choices.loop.predicted * choices.loop.size
    assert change == pytest.approx(foreseen, rel=1e-3, abs=1e-5 * choices.loop.size)
    assert abs(foreseen) > 1e-3 * choices.loop.size


def test_hysteresis_keeps_the_bounds_while_they_are_good_enough() -> None:
    tokens = typical_tokens(150, seed=2)
    size = float(contributions(tokens).abs().sum())
    here = budget_at(tokens, 0.375) / size
    wide = {"clip": {**CLOSED["clip"], "loop": {"gain": 1.0, "band": 0.05}}}
    assert choose_loop(wide, tokens, controls_for(here + 0.04, knob=0.375)).knob == 0.375
    moved = choose_loop(wide, tokens, controls_for(here + 0.06, knob=0.375))
    assert moved.knob > 0.375
    assert abs(moved.predicted - moved.wanted) < 0.01  # once it moves, all the way
    assert choose_loop(CLOSED, tokens, controls_for(here + 0.04, knob=0.375)).knob > 0.375


def test_it_stays_near_where_it_was_among_places_that_are_equal() -> None:
    tokens = typical_tokens(12, seed=2)
    size = float(contributions(tokens).abs().sum())
    for before in (0.1, 0.35, 0.62, 0.9):
        wanted = budget_at(tokens, before) / size
        assert choose_loop(CLOSED, tokens, controls_for(wanted, knob=before)).knob == before


def test_a_first_update_leaves_the_knob_alone() -> None:
    tokens = make_tokens([40], logp=-1.0, old_logp=-1.0, advantage=[1.0, -1.0] * 20, expected_q=0.3)
    found = choose_loop(CLOSED, tokens, controls_for(1.0, knob=0.3))
    assert (found.knob, found.wanted) == (0.3, 1.0)
    nothing = choose_loop(CLOSED, make_tokens([0]), controls_for(1.0, knob=0.3))
    assert nothing.knob == 0.3


def test_a_range_that_moves_one_side_leaves_the_other_off() -> None:
    clip = {**CLOSED["clip"], "high_tight": math.inf, "high_loose": math.inf}
    tokens = typical_tokens(150, seed=6)
    found = choose_loop({"clip": clip}, tokens, controls_for(0.3))
    config, controls = ObjectiveConfig.model_validate({"clip": clip}), controls_for(0.3)
    loss = compute_token_loss(config, controls, tokens, choose(config, tokens, controls, SingleRank()))
    assert found.knob > 0
    assert loss.high_T.isinf().all()
    assert loss.low_T.unique().tolist() == [pytest.approx(0.6 + 0.38 * found.knob)]


def test_the_error_is_of_the_entropy_as_the_tokens_have_moved_since() -> None:
    objective = {"clip": {**CLOSED["clip"], "loop": {"gain": 2.0}}}
    tokens = typical_tokens(150, seed=6)
    moved = tokens.replace(old_entropy_T=tokens.entropy_T + 0.05)  # the policy has lost 0.05 nats in this step
    loop = LoopControls(target=1.2, entropy=1.1, offset=0.1, knob=0.5)
    found = choose_loop(objective, moved, Controls(step=3, seed=0, loop=loop))
    assert found.entropy == pytest.approx(1.05)
    assert found.wanted == pytest.approx(2.0 * (1.2 - 1.05) / 1.2 + 0.1)
    clip: Any = ObjectiveConfig.model_validate(objective).clip
    assert wanted_share(clip, loop, 0.1) == 1.0
    assert wanted_share(clip, loop, 5.0) == -1.0


@pytest.mark.parametrize(("objective", "wanted"), [(CLOSED, 0.05), (FLEXEC, 0.13)], ids=["constant", "flexec"])
@pytest.mark.parametrize("distinct", [None, 2], ids=["distinct", "ties"])
def test_every_layout_chooses_the_same(objective: dict[str, Any], wanted: float, distinct: int | None) -> None:
    config = ObjectiveConfig.model_validate(objective)
    samples = random_samples([13, 1, 40, 0, 25, 8, 31, 17, 2, 29], seed=9, distinct=distinct)
    whole = batch_of(samples)
    controls = controls_for(wanted)
    expected = choose(config, whole, controls, SingleRank())
    assert expected.loop is not None
    assert 0 < expected.loop.knob < 1

    def run(share: list, reduce: Any) -> tuple[dict, LoopChoice | None]:
        tokens = TokenBatch.concatenate([batch_of([sample]) for sample in share]) if share else batch_of([])
        choices = choose(config, tokens, controls, reduce)
        return by_token(tokens, choices), choices.loop

    for shares in layouts(samples):
        results, calls = on_ranks(run, shares)
        assert all(loop == expected.loop for _, loop in results)  # to the last bit
        assert {key: value for result, _ in results for key, value in result.items()} == by_token(whole, expected)
        assert all(rank == calls[0] for rank in calls)


@pytest.mark.parametrize(("spread", "rounds"), [(0.0, 1), (1e-9, 5)], ids=["nothing to move", "all in one place"])
def test_it_looks_five_times_at_most(spread: float, rounds: int) -> None:
    """A collective that counts the tokens, two of the budget's size, two of each round."""
    moved_T = torch.full((40,), math.log(0.77) if spread else 0.0).double() + spread * torch.arange(40).double()
    tokens = make_tokens([40], logp=-1.0 + moved_T, old_logp=-1.0, advantage=-1.0, expected_q=0.3)
    config, controls = ObjectiveConfig.model_validate(CLOSED), controls_for(-0.5)
    _, (calls,) = on_ranks(lambda share, reduce: choose(config, share, controls, reduce), [tokens])
    assert len(calls) == 1 + 2 + 2 * rounds


def test_without_the_loop_s_numbers_it_says_so() -> None:
    config = ObjectiveConfig.model_validate(CLOSED)
    tokens = typical_tokens(10, seed=0)
    with pytest.raises(ValueError, match=r"no numbers of its loop; they come from ControllerState\.begin_step"):
        choose(config, tokens, Controls(step=1, seed=0), SingleRank())
    with pytest.raises(ValueError, match=r"hold no knob; it comes from a search"):
        compute_token_loss(config, controls_for(0.0), tokens, Choices.none(tokens.logp_T))


def test_what_is_logged_of_it() -> None:
    """What the search foresaw beside what the update's own pass counts, also where no token has an advantage."""
    config = ObjectiveConfig.model_validate(CLOSED)
    for tokens in (any_tokens(200, seed=3), any_tokens(50, seed=3).replace(advantage_T=torch.zeros(50).double())):
        controls = controls_for(0.1)
        choices = choose(config, tokens, controls, SingleRank())
        loss = compute_token_loss(config, controls, tokens, choices)
        sums = collect_token_sums(tokens, loss, SingleRank())
        result = merge_results([UpdateResult.of(sums, {}, loop=choices.loop)])
        assert result.loop == choices.loop
        found = to_values(result.metrics)
        assert found["control/loop_measured"] == pytest.approx(found["control/loop_predicted"], abs=1e-12)
        assert found["control/loop_wanted"] == pytest.approx(0.1)
        assert choices.loop is not None
        assert found["control/loop_knob"] == choices.loop.knob
        assert found["control/loop_entropy"] == 1.0
