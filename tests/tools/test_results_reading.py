"""Numbers that the documents take from a table: per seed, paired, and of the first order."""

from pathlib import Path

import numpy as np
import pytest
from results.clipping_claims import after_first
from results.clipping_levels import first_words
from results.clipping_matched import dropped_words
from results.clipping_prediction import correlation_words
from results.first_order import measured_change, predicted_sum, size_ratio, step_correlation
from results.ran import width_words
from results.reading import Results, difference, over_seeds

from megarl.report.predicted import correlate
from tests.tools.stored_tables import UPDATES, make_stored

NAME = "random-reward-products-small"
STEPS = 4


def of_step(setting: str, seed: int, step: int) -> dict[str, float]:
    other_start = 0.5 if setting == "low0.2" else 0.0
    return {
        "actor/old_entropy": 8.0 + seed + other_start * (seed == 1) - step**2 / 4,
        "actor/entropy_over_start": 1 - step / 8 - seed / 16,
        "clip_ratio/low_mean": 0.02 if setting == "low0.2" else 0.0,
        "clip_ratio/high_mean": 0.0,
        "matched/low_dropped": (0.01 + seed * 1e-5) if setting == "low0.2-coin" else 0.0,
        "matched/high_dropped": 0.0,
        "eval/held/mean@8": step / 4,
    }


def of_update(setting: str, seed: int, step: int, update: int) -> dict[str, float]:
    return {"actor/lr": 0.5, "entropy/budget": -float(2 * step + 1) - (0.0 if update else seed)}


@pytest.fixture
def found(tmp_path: Path) -> Results:
    return Results(make_stored(NAME, of_step, of_update, steps=STEPS, seeds=(0, 1)), tmp_path)


def test_measures_are_those_of_an_ablation(found: Results) -> None:
    assert found.measure("none", "entropy_end") == {0: 0.5, 1: 0.4375}
    assert found.measure("none", "entropy_mean") == {0: 1 - 2.5 / 8, 1: 1 - 2.5 / 8 - 1 / 16}
    assert found.evaluated("none", "eval/held/mean@8") == {0: 1.0, 1: 1.0}
    assert after_first(found, "none") == {0: 0.75, 1: 0.6875}
    assert found.measure("none", "reward_end") == {}
    with pytest.raises(KeyError, match="no measure 'entropy'; expected one of entropy_end, "):
        found.measure("none", "entropy")
    assert over_seeds({}) is None
    paired = difference({0: 1.0, 1: 2.0, 7: 9.0}, {0: 0.5, 1: 1.5})
    assert paired is not None
    assert (paired.value, paired.n) == (0.5, 2)


def test_a_prediction_is_summed_over_the_steps_that_were_measured(found: Results) -> None:
    budgets = [2 * step + 1 for step in (1, 2, 3)]
    assert predicted_sum(found, "none") == {0: -0.5 * UPDATES * sum(budgets), 1: -0.5 * (UPDATES * sum(budgets) + 3)}
    assert predicted_sum(found, "none", steps=1, factor=-1)[0] == 0.5 * UPDATES * budgets[0]
    run = found.runs["none"][0]
    assert (measured_change(run), measured_change(run, 1), measured_change(run, STEPS)) == (-15 / 4, -3 / 4, None)
    assert step_correlation(run) == pytest.approx(1.0)
    assert size_ratio(found, ["none"]) == pytest.approx(0.25 / (0.5 * UPDATES), rel=0.1)
    assert np.isnan(correlate(np.array([1.0]), np.array([2.0])))
    assert correlate(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 0.0])) == pytest.approx(-1.0)


def test_what_runs_share_is_looked_up_and_not_assumed(found: Results, tmp_path: Path) -> None:
    assert "On products runs of one seed had other responses" in first_words({"products": found})
    alike = make_stored(NAME, lambda _, seed, step: of_step("none", seed, step), of_update, steps=2, seeds=(0, 1))
    assert "only what is dropped differs" in first_words({"products": Results(alike, tmp_path)})
    assert "low0.2, low side, by **+1.00 ± 0.01** points" in dropped_words({"products": found})
    assert "no side's difference between clip and coin exceeds" in dropped_words({"products": Results(alike, tmp_path)})


def test_chance_deals_the_measured_to_other_seeds_with_all_clips_together() -> None:
    seeds, clips = range(8), ("low0.2", "high0.2")
    noise = np.random.default_rng(2).standard_normal((8, 2))
    alike = {(clip, seed): (noise[seed, 0], noise[seed, 0]) for seed in seeds for clip in clips}
    apart = {
        (clip, seed): (noise[seed, 0] + at, noise[seed, 1] + at) for seed in seeds for at, clip in enumerate(clips)
    }
    assert correlation_words(alike).startswith("1.00 (with the seeds dealt anew one in twenty is beyond ±0.")
    # The clips' means differ by 1 on both sides, which is no connection within a clip; and of two clips that say the
    # same there are as many independent numbers as seeds.
    found = float(correlation_words(apart).replace("−", "-").split()[0])
    assert found == pytest.approx(np.corrcoef(noise.T)[0, 1], abs=0.006)
    limit = float(correlation_words(apart).rpartition("±")[2].rstrip(")"))
    assert 0.6 < limit < 0.8  # 0.71 for 8 independent pairs; for 16 it were 0.50
    assert correlation_words(dict(list(apart.items())[:-1])) == "– (not every seed has every clip)"


def test_how_wide_intervals_are_is_of_the_seeds_that_were_run(found: Results, tmp_path: Path) -> None:
    five, one = (
        Results(make_stored(NAME, of_step, of_update, steps=STEPS, seeds=range(seeds)), tmp_path) for seeds in (5, 1)
    )
    assert width_words([five, found]) == (
        "An interval of 2 seeds is 9.0 deviations wide to either side, of 5 seeds 1.2: what is undecided may be large."
    )
    assert width_words([one]) == "One seed has no interval."
