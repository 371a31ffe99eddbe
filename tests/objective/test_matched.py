"""The matched control: exact counts on each side, a coin that knows nothing of the ratio, no bias, any layout."""

import itertools
import math

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.choices import choose
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_random import token_keys
from megarl.objective.token_sums import possible_rules, to_metrics
from megarl.objective.tokens import Choices, Controls, TokenBatch
from megarl.rules import Rule
from tests.objective.choosing import CONTROLS, batch_of, by_token, choose_of, random_samples
from tests.objective.simulated_ranks import SingleRank, on_ranks
from tests.objective.test_choices import layouts
from tests.objective.tokens import make_tokens

LENGTHS = [13, 1, 40, 0, 25, 8, 31, 17, 2, 29]
CONTROL = {"clip": {"low": 0.2, "high": 0.1}, "weights": {"matched": {}}}


def sides(tokens: TokenBatch, *, low: float = 0.2, high: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that clipping would drop, in float64."""
    ratio_T = (tokens.logp_T.double() - tokens.old_logp_T.double()).exp()
    return (tokens.advantage_T < 0) & (ratio_T < 1 - low), (tokens.advantage_T > 0) & (ratio_T > 1 + high)


def dropped(choices: Choices) -> torch.Tensor:
    return (choices.rule_T & Rule.MATCHED) != 0


def test_drops_on_each_side_as_many_as_clipping_would() -> None:
    for seed in range(5):
        tokens = batch_of(random_samples(LENGTHS, seed=seed))
        low_T, high_T = sides(tokens)
        choices = choose_of(CONTROL, tokens)
        drop_T = dropped(choices)
        assert low_T.sum() > 0
        assert high_T.sum() > 0
        assert (drop_T & (tokens.advantage_T < 0)).sum() == low_T.sum()
        assert (drop_T & (tokens.advantage_T > 0)).sum() == high_T.sum()
        assert choices.weight_T.tolist() == [float(not drop) for drop in drop_T.tolist()]
        assert not drop_T.equal(low_T | high_T)


@pytest.mark.parametrize("side", ["low", "high"])
def test_one_side_alone(side: str) -> None:
    clip = {"low": 0.2, "high": math.inf} if side == "low" else {"low": 1.0, "high": 0.1}
    tokens = batch_of(random_samples(LENGTHS, seed=3))
    drop_T = dropped(choose_of({**CONTROL, "clip": clip}, tokens))
    wanted = dict(zip(("low", "high"), sides(tokens), strict=True))[side]
    assert drop_T.sum() == wanted.sum() > 0
    assert bool((tokens.advantage_T[drop_T] < 0).all()) == (side == "low")


def test_they_are_those_of_the_side_with_the_smallest_draws() -> None:
    """A reference with a sort over the whole mini-batch."""
    tokens = batch_of(random_samples(LENGTHS, seed=1))
    draw_T = token_keys(
        seed=CONTROLS.seed, step=CONTROLS.step, sample_id_T=tokens.sample_id_T, position_T=tokens.position_T
    )
    expected = set()
    for side_T, beyond_T in zip((tokens.advantage_T < 0, tokens.advantage_T > 0), sides(tokens), strict=True):
        order = sorted(side_T.nonzero()[:, 0].tolist(), key=lambda at: int(draw_T[at]))
        expected |= set(order[: int(beyond_T.sum())])
    assert set(dropped(choose_of(CONTROL, tokens)).nonzero()[:, 0].tolist()) == expected


def test_the_coin_does_not_look_at_the_ratio() -> None:
    """Over many steps every token of a side is dropped equally often, whatever its ratio."""
    tokens = make_tokens(
        [400],
        logp=[-1.0 + 0.002 * at for at in range(400)],
        old_logp=-1.0,
        advantage=[1.0 if at % 2 else -1.0 for at in range(400)],
    )
    tokens = tokens.replace(logp_T=tokens.logp_T - 0.4)  # log ratios from -0.4 to 0.4
    objective = ObjectiveConfig.model_validate(CONTROL)
    steps, times_T = 300, torch.zeros(400)
    for step in range(1, steps + 1):
        choices = choose(objective, tokens, Controls(step=step, seed=0), SingleRank())
        times_T += dropped(choices)
    for side_T, beyond_T in zip((tokens.advantage_T < 0, tokens.advantage_T > 0), sides(tokens), strict=True):
        share = float(beyond_T.sum() / side_T.sum())
        error = math.sqrt(share * (1 - share) / (steps * float(beyond_T.sum())))
        among_clipped = float(times_T[beyond_T].mean() / steps)
        assert abs(among_clipped - share) < 4 * error
        assert abs(times_T[side_T] / steps - share).max() < 4.5 * math.sqrt(share * (1 - share) / steps)


@pytest.mark.parametrize("distinct", [None, 2], ids=["distinct", "ties"])
def test_every_layout_drops_the_same_tokens(distinct: int | None) -> None:
    objective = ObjectiveConfig.model_validate(CONTROL)
    samples = random_samples(LENGTHS, seed=9, distinct=distinct)
    whole = batch_of(samples)
    expected = by_token(whole, choose_of(CONTROL, whole))
    assert any(flags for _, flags, _ in expected.values())

    def run(share: list, reduce: object) -> dict:
        tokens = TokenBatch.concatenate([batch_of([sample]) for sample in share]) if share else batch_of([])
        return by_token(tokens, choose(objective, tokens, CONTROLS, reduce))

    for shares in layouts(samples):
        results, calls = on_ranks(run, shares)
        assert {key: value for result in results for key, value in result.items()} == expected
        assert all(rank == calls[0] for rank in calls)


def test_bounds_do_not_act_and_are_counted() -> None:
    tokens = batch_of(random_samples(LENGTHS, seed=2))
    objective = ObjectiveConfig.model_validate(CONTROL)
    choices = choose_of(CONTROL, tokens)
    loss = compute_token_loss(objective, CONTROLS, tokens, choices)
    ratio_T = (tokens.logp_T - tokens.old_logp_T).exp()
    expected_T = torch.where(dropped(choices), 0.0, tokens.weight_T * ratio_T * tokens.advantage_T)
    torch.testing.assert_close(loss.coefficient_T, expected_T)
    assert not (loss.rule_T & (Rule.CLIP_LOW | Rule.CLIP_HIGH)).any()
    sums = collect_token_sums(tokens, loss, SingleRank())
    metrics = {name: metric.value for name, metric in to_metrics(sums, rules=possible_rules(objective)).items()}
    num_tokens = tokens.logp_T.numel()
    for side, beyond_T in zip(("low", "high"), sides(tokens), strict=True):
        assert metrics[f"matched/{side}_beyond"] == pytest.approx(beyond_T.sum().item() / num_tokens)
        assert metrics[f"matched/{side}_dropped"] == metrics[f"matched/{side}_beyond"]
        assert metrics[f"clip_ratio/{side}_mean"] == 0
    assert metrics["rule/matched_frac"] == metrics["actor/masked_frac"] > 0
    assert metrics["clip_bound/low_mean"] == pytest.approx(0.2)


def test_only_the_control_logs_it() -> None:
    tokens = batch_of(random_samples(LENGTHS, seed=2))
    objective = ObjectiveConfig.model_validate({"clip": CONTROL["clip"]})
    loss = compute_token_loss(objective, CONTROLS, tokens, Choices.none(tokens.logp_T))
    metrics = to_metrics(collect_token_sums(tokens, loss, SingleRank()), rules=possible_rules(objective))
    assert metrics["clip_ratio/low_mean"].value > 0
    assert not [name for name in metrics if "matched" in name]


def test_the_control_has_no_bias_where_the_clip_has() -> None:
    """One state, all actions drawn from the old policy many times, rewards of a coin: the mean gradient in the logits
    is Theorem 1's for the clip and 0 for its control, in float64, by counts of a whole mini-batch of samples."""
    generator = torch.Generator().manual_seed(0)
    old_V = torch.tensor([2.0, 1.0, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    now_V = torch.tensor([2.3, 0.6, 0.5, -1.1], dtype=torch.float64).log_softmax(0)
    n = 200_000
    action_T = torch.multinomial(old_V.exp(), n, replacement=True, generator=generator)
    advantage_T = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0).double()
    tokens = make_tokens([n], logp=now_V[action_T], old_logp=old_V[action_T], advantage=advantage_T, weight=1.0 / n)

    def mean_gradient(objective: dict) -> torch.Tensor:
        config = ObjectiveConfig.model_validate(objective)
        coefficient_T = compute_token_loss(config, CONTROLS, tokens, choose_of(objective, tokens)).coefficient_T
        of_action = torch.zeros(4, dtype=torch.float64).index_add(0, action_T, coefficient_T)
        return of_action - now_V.exp() * of_action.sum()

    bounds = {"low": 0.2, "high": 0.1}
    clipped, control = mean_gradient({"clip": bounds}), mean_gradient(CONTROL)
    ratio_V = (now_V - old_V).exp()
    h_V = (ratio_V < 0.8).double() - (ratio_V > 1.1).double()
    theorem = 0.5 * now_V.exp() * (h_V - (now_V.exp() * h_V).sum())
    error = 4 * math.sqrt(1 / n)
    assert (clipped - theorem).abs().max() < error
    assert theorem.abs().max() > 10 * error
    assert control.abs().max() < error


def test_nothing_is_dropped_before_the_ratio_has_moved() -> None:
    tokens = make_tokens([30], logp=-1.0, old_logp=-1.0, advantage=[1.0, -1.0] * 15)
    assert not choose_of(CONTROL, tokens).rule_T.any()
    assert choose_of(CONTROL, make_tokens([0])).weight_T.shape == (0,)


@pytest.mark.parametrize("n", [1, 2])
def test_a_token_counts_itself_so_that_the_nth_part_of_the_clips_bias_stays(n: int) -> None:
    """Mini-batches of n tokens with A > 0, each beyond its bound or not by an even chance: of what the clip takes from
    the beyond alone, the control takes 1/n from them beside what it takes from all alike. Enumerated, by many draws."""
    logp_M = torch.tensor([math.log(1.5), 0.0], dtype=torch.float64)
    kept_by_kind = torch.zeros(2, dtype=torch.float64)
    draws = 40
    for kinds in itertools.product((0, 1), repeat=n):
        for draw in range(draws):
            tokens = make_tokens(
                [1] * n, logp=logp_M[list(kinds)], old_logp=0.0, sample_ids=[draw * n + index for index in range(n)]
            )
            weight_T = choose_of(CONTROL, tokens).weight_T
            kept_by_kind.index_add_(0, torch.tensor(kinds), weight_T / (n * draws * 2**n))
    # Kept of each kind, of a half: the clip keeps (0, 1/2); a coin of the mean count would keep (1/4, 1/4).
    beyond, inside = (kept_by_kind * 2).tolist()
    assert inside - beyond == pytest.approx(1 / n, abs=0.12)
