"""Rounding of numbers that are equal by construction decides nothing."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.choices import choose
from megarl.objective.contexts import RESOLUTION, at_resolution, number_contexts, share_values
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_sums import SUM_NAMES, TokenSums
from megarl.objective.tokens import Choices, TokenBatch
from megarl.records import Sample
from megarl.rules import Rule
from tests.objective.choosing import CONTROLS, by_token
from tests.objective.simulated_ranks import SingleRank, on_ranks
from tests.objective.tokens import make_tokens

NOISE = 2e-6
"""Nats by which layouts may differ in float32."""
CERTAIN = 40
"""The token after which the model of these tests knows the next one: p = 1, H = 0."""


def sample_of(prompt: tuple[int, ...], response: tuple[int, ...], advantage: float = 1.0) -> Sample:
    return Sample(prompt=prompt, response=response, behavior_logp=(0.0,) * len(response), advantage=advantage)


def number_all(samples: Sequence[Sample]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """(context, outcome) of all response tokens."""
    return [
        (fill(context, len(sample.response)), fill(outcome, len(sample.response)))
        for sample, (context, outcome) in zip(samples, number_contexts(samples), strict=True)
    ]


def fill(numbers: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    return np.append(numbers, np.full(size - len(numbers), -1, dtype=np.int32))


def test_equal_prefixes_have_equal_numbers() -> None:
    samples = [
        sample_of((1, 2), (3, 4, 5)),
        sample_of((1, 2), (3, 4, 6)),  # parts from the first at its last token
        sample_of((1, 2), ()),
        sample_of((1, 2), (7, 4, 5)),  # only the first token has a known context
        sample_of((1,), (2, 3, 4)),  # the same tokens, but another prompt: prefixes count, however they are divided
        sample_of((2, 1), (3, 4, 5)),  # the order counts
    ]
    context, outcome = zip(*((c.tolist(), o.tolist()) for c, o in number_all(samples)), strict=True)
    assert [len(numbers) for numbers in context] == [3, 3, 0, 3, 3, 3]
    a, b, c = context[0]
    assert len({a, b, c}) == 3
    assert context[1] == [a, b, c]
    assert context[3] == [a, -1, -1]
    assert context[4] == [-1, a, b]
    assert context[5] == [-1, -1, -1]
    after_3, after_4, last = outcome[0]
    assert (outcome[1], outcome[3], outcome[4]) == ([after_3, after_4, -1], [-1, -1, -1], [-1, after_3, after_4])
    assert last == -1
    assert {number for numbers in context for number in numbers} == {-1, 0, 1, 2}


def test_numbers_do_not_depend_on_anything_but_the_tokens() -> None:
    draw = random.Random(3)
    samples = [sample_of((1,), tuple(draw.randrange(3) for _ in range(6))) for _ in range(40)]
    keys = [tuple(sample.response[:position]) for sample in samples for position in range(6)]
    numbers = np.concatenate([context for context, _ in number_all(samples)]).tolist()
    for key, number in zip(keys, numbers, strict=True):
        assert (number == -1) == (keys.count(key) == 1)
    assert len({(key, number) for key, number in zip(keys, numbers, strict=True) if number >= 0}) == max(numbers) + 1
    assert number_contexts([]) == []


def test_a_class_gets_its_largest_value_on_every_rank() -> None:
    samples = [sample_of((1,), (2, 3)), sample_of((1,), (2, 4)), sample_of((9,), (5,))]
    tokens = tokens_of(samples, noise=0.0)
    parts = [select(tokens, [0]), select(tokens, [1, 2]), select(tokens, [])]
    parts[0] = parts[0].replace(entropy_T=torch.tensor([1.0, 3.0]), logp_T=torch.tensor([-1.0, -2.0]))
    parts[1] = parts[1].replace(entropy_T=torch.tensor([2.0, 1.0, 7.0]), logp_T=torch.tensor([-1.5, -5.0, -6.0]))
    shared, calls = on_ranks(share_values, parts)
    assert shared[0].entropy_T.tolist() == [2.0, 3.0]
    assert shared[1].entropy_T.tolist() == [2.0, 3.0, 7.0]  # both second tokens follow (1, 2)
    assert shared[0].logp_T.tolist() == [-1.0, -2.0]  # but are different tokens
    assert shared[1].logp_T.tolist() == [-1.0, -5.0, -6.0]
    assert [len(of_rank) for of_rank in calls] == [2, 2, 2]
    nobody, calls = on_ranks(share_values, [select(tokens_of(samples[2:], noise=0.0), [0])])
    assert nobody[0].entropy_T.tolist() == tokens.entropy_T[-1:].tolist()
    assert [len(of_rank) for of_rank in calls] == [1]


def tied_samples(seed: int) -> list[Sample]:
    """Two groups of eight with copies, and responses that end with tokens of which the policy is certain."""
    draw = random.Random(seed)
    samples = []
    for prompt in ((1, 2), (3,)):
        different = [tuple(draw.randrange(30) for _ in range(draw.randint(2, 9))) for _ in range(4)]
        for index in range(8):
            response = different[(index * index) % 4] + (CERTAIN,) * (index % 3)
            # A reward belongs to the response: copies have one advantage.
            samples.append(sample_of(prompt, response, advantage=(1.0, -1.0, 0.5, -0.5)[index * index % 4]))
    return samples


def tokens_of(samples: list[Sample], *, noise: float, seed: int = 0, moved: bool = True) -> TokenBatch:
    """Numbers that depend on the context and the token alone, but for rounding; where it hurts most, halfway between
    two multiples of the resolution."""
    rounding = torch.Generator().manual_seed(seed)
    columns: dict[str, list[float]] = {
        name: [] for name in ("logp", "old_logp", "entropy", "old_entropy", "expected_q")
    }
    for sample in samples:
        for position, token in enumerate(sample.response):
            rng = random.Random(repr((sample.prompt.tolist(), sample.response[:position].tolist())))
            old_entropy, drift = rng.uniform(0.1, 3.0), rng.gauss(0, 0.1) if moved else 0.0
            old_logp = -random.Random(
                repr((sample.prompt.tolist(), sample.response[:position].tolist(), int(token)))
            ).expovariate(0.7)
            if token == CERTAIN:
                old_logp = old_entropy = drift = 0.0
            logp, entropy = halfway(old_logp - abs(drift)), halfway(abs(old_entropy + drift))
            values = (logp, old_logp, entropy, old_entropy, 0.2 * entropy / (1 + entropy))
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    tokens = make_tokens(
        [len(sample.response) for sample in samples],
        dtype=torch.float32,
        advantage=[sample.advantage for sample in samples for _ in sample.response],
        weight=1.0 / max(1, sum(len(sample.response) for sample in samples)),
        **{
            name: (
                torch.tensor(column, dtype=torch.float64)
                + noise * (2 * torch.rand(len(column), generator=rounding) - 1)
            )
            for name, column in columns.items()
        },
    )
    contexts, outcomes = map(np.concatenate, zip(*number_all(samples), strict=True))
    return tokens.replace(
        context_T=torch.tensor(contexts, dtype=torch.int64), outcome_T=torch.tensor(outcomes, dtype=torch.int64)
    )


def halfway(value: float) -> float:
    """The nearest number that may be rounded to either side; 0 is certain, and stays."""
    return (math.floor(value / RESOLUTION) + 0.5) * RESOLUTION if value else 0.0


def select(tokens: TokenBatch, numbers: list[int]) -> TokenBatch:
    """The samples at these places, as a rank's share."""
    ids = torch.tensor(numbers, dtype=torch.int64)
    place_T = torch.cat([(tokens.sample_id_T == number).nonzero().squeeze(1) for number in numbers] or [ids])
    columns = {
        name: getattr(tokens, name)[place_T]
        for name in ("logp_T", "old_logp_T", "entropy_T", "old_entropy_T", "expected_q_T", "advantage_T", "weight_T")
    }
    columns |= {
        name: getattr(tokens, name)[place_T] for name in ("position_T", "sample_id_T", "context_T", "outcome_T")
    }
    lengths = torch.tensor([int((tokens.sample_id_T == number).sum()) for number in numbers], dtype=torch.int64)
    sequence_T = torch.arange(len(numbers)).repeat_interleave(lengths)
    return replace(tokens, num_sequences=len(numbers), sequence_T=sequence_T).replace(**columns)


RULES = {
    "80/20": {"weights": {"high_entropy": {"fraction": 0.2}}},
    "80/20 among certain tokens": {"weights": {"high_entropy": {"fraction": 0.92}}},
    "KL-Cov": {"auxiliary": {"kl_cov": {"fraction": 0.2}}},
    "KL-Cov among certain tokens": {"auxiliary": {"kl_cov": {"fraction": 0.93}}},
    "Clip-Cov": {"weights": {"clip_cov": {"fraction": 0.1, "low": 0.0}}},
    "Clip_B": {"weights": {"clip_b": {"mu": 0.5}}},
    "Clip_V": {"weights": {"clip_v": {"mu": 0.1, "max_fraction": 0.05}}},
    "STEER": {"weights": {"steer": {"shape": "linear"}}},
    "BAPO": {"clip": {"kind": "bapo"}},
}


@pytest.mark.parametrize("rule", RULES)
def test_rounding_moves_no_choice(rule: str) -> None:
    objective = ObjectiveConfig.model_validate(RULES[rule])
    ruled = 0
    for seed in range(12):
        samples = tied_samples(seed)
        exact = tokens_of(samples, noise=0.0)
        expected = choose(objective, exact, CONTROLS, SingleRank())
        wanted = by_token(exact, expected)
        ruled += int((expected.rule_T != 0).sum())
        rounded = tokens_of(samples, noise=NOISE, seed=seed)
        shares = [
            select(rounded, numbers) for numbers in ([3, 0, 12], [], [n for n in range(16) if n not in (0, 3, 12)])
        ]

        def run(share, reduce):
            choices = choose(objective, share, CONTROLS, reduce)
            return by_token(share, choices), choices.bapo_bounds

        together = {}
        for chosen, bounds in on_ranks(run, shares)[0]:
            together |= chosen
            assert bounds == expected.bapo_bounds
        assert together.keys() == wanted.keys()
        for token, (weight, flags, is_chosen) in together.items():
            assert (flags, is_chosen) == wanted[token][1:], f"seed {seed}, token {token}"
            assert weight == pytest.approx(wanted[token][0], abs=1e-3)
    # Where the threshold is an entropy of 0, everything ties with it.
    assert (ruled > 0) == (rule not in ("STEER", "BAPO", "80/20 among certain tokens"))


@pytest.mark.parametrize("seed", range(4))
def test_rounding_moves_no_token_to_another_quintile(seed: int) -> None:
    objective, samples = ObjectiveConfig(), tied_samples(seed)

    def quintiles(tokens: TokenBatch) -> TokenSums:
        loss = compute_token_loss(objective, CONTROLS, tokens, Choices.none(tokens.logp_T))
        return collect_token_sums(tokens, loss, SingleRank())

    exact, rounded = (quintiles(tokens_of(samples, noise=noise, seed=seed)) for noise in (0.0, NOISE))
    for name, a, b in zip(SUM_NAMES, exact.sum_N.tolist(), rounded.sum_N.tolist(), strict=True):
        if "_q" in name or name.startswith("region"):
            assert a == b, name


def test_tokens_that_are_alike_are_treated_alike_whatever_their_rounding() -> None:
    """A policy that is certain of everything has nothing to rank: H, S and N - S are rounding."""
    generator = torch.Generator().manual_seed(0)

    def rounding() -> torch.Tensor:
        return NOISE * (2 * torch.rand(200, generator=generator, dtype=torch.float64) - 1)

    names = ("logp", "old_logp", "entropy", "old_entropy", "expected_q")
    tokens = make_tokens([50] * 4, advantage=-1.0, **{name: rounding() for name in names})
    weights = {
        "high_entropy": {"fraction": 0.2},
        "clip_b": {"mu": 1.0},
        "clip_v": {"mu": 1.0, "max_fraction": 1.0},
        "erc": {},
    }
    objective = ObjectiveConfig.model_validate({"weights": weights})
    chosen = choose(objective, tokens, CONTROLS, SingleRank())
    assert set(chosen.weight_T.tolist()) == {1.0}
    loss = compute_token_loss(objective, CONTROLS, tokens, chosen)
    assert set(loss.rule_T.tolist()) == {0}  # ERC too
    linear = ObjectiveConfig.model_validate({"weights": {"steer": {"shape": "linear", "low": 0.5, "high": 1.5}}})
    assert choose(linear, tokens, CONTROLS, SingleRank()).weight_T.tolist() == pytest.approx([1.0] * 200, abs=0.05)


def test_the_wide_interval_of_archer_is_not_drawn_among_certain_tokens() -> None:
    entropy = [NOISE * (index % 7 - 3) for index in range(20)]
    tokens = make_tokens([20], entropy=entropy, old_entropy=entropy)
    objective = ObjectiveConfig.model_validate({"clip": {"kind": "archer"}})
    loss = compute_token_loss(objective, CONTROLS, tokens, Choices.none(tokens.logp_T))
    assert loss.high_T.tolist() == pytest.approx([1.2] * 20)


def test_equal_sums_meet_bapos_target() -> None:
    """Before a batch's first update r = 1, and advantages that add up to 0 have equal contributions."""
    for shift in (-1e-6, 0.0, 1e-6):
        tokens = make_tokens([4], logp=-1.0 + shift, old_logp=-1.0, advantage=[1.0, -1.0 - shift, 0.5, -0.5])
        chosen = choose(ObjectiveConfig.model_validate({"clip": {"kind": "bapo"}}), tokens, CONTROLS, SingleRank())
        assert chosen.bapo_bounds == (0.6, 1.2)


def test_what_rounding_can_still_move_is_as_rare_as_it_says() -> None:
    """80/20 of 30,000 tokens of their own contexts: 2 T f e, with density f = 1/3 and rounding e, is 0.02 tokens."""
    num_tokens, trials, rounding = 30_000, 60, 1e-6
    objective = ObjectiveConfig.model_validate(RULES["80/20"])
    generator = torch.Generator().manual_seed(1)
    moved = 0
    for _ in range(trials):
        entropy_T = 3 * torch.rand(num_tokens, generator=generator, dtype=torch.float64)
        masks = []
        for _ in range(2):
            noise_T = rounding * (2 * torch.rand(num_tokens, generator=generator, dtype=torch.float64) - 1)
            chosen = choose(objective, make_tokens([num_tokens], entropy=entropy_T + noise_T), CONTROLS, SingleRank())
            masks.append((chosen.rule_T & Rule.LOW_ENTROPY) != 0)
        moved += int((masks[0] != masks[1]).sum())
    assert moved <= 3 * 2 * num_tokens / 3 * rounding * trials


def test_multiples_of_the_resolution() -> None:
    values = torch.tensor([-1e-6, 1e-6, 0.4 * RESOLUTION, 0.6 * RESOLUTION, 1.0, math.log(2)])
    found = at_resolution(values)
    assert found.tolist()[:5] == [0.0, 0.0, 0.0, RESOLUTION, 1.0]
    assert abs(found[5].item() - math.log(2)) <= RESOLUTION / 2
