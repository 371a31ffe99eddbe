"""FlexEC's schedules against worked numbers, its switch by hand, and CDE's staircase."""

import pytest

from megarl.config.advantage import PerplexityBonus
from megarl.config.trust import FlexEcClip
from megarl.objective.schedules import flexec_lines, flexec_raises, flexec_thresholds, perplexity_omega


def distances(schedule: str, steps_done: int, *, total: int = 400, raising: bool = False, **fields: float):
    """(high, low) at p = 0.5."""
    clip = FlexEcClip(kind="flexec", schedule=schedule, **fields)
    lines = flexec_lines(clip, steps_done=steps_done, total_steps=total, raising=raising)
    return tuple(slope * 0.5 + start for slope, start in lines)


@pytest.mark.parametrize(
    ("schedule", "steps_done", "high", "low"),
    [
        ("id", 0, 0.375, 0.2),
        ("id", 100, 0.2875, 0.2),
        ("id", 200, 0.2, 0.2),
        ("id", 201, 0.2, 0.234825),
        ("id", 300, 0.2, 0.2175),
        ("id", 400, 0.2, 0.2),
        ("did", 0, 0.2, 0.2),
        ("did", 100, 0.2875, 0.2),
        ("did", 200, 0.375, 0.2),
        ("did", 201, 0.375, 0.234825),
        ("did", 400, 0.375, 0.2),
        ("upper", 17, 0.375, 0.2),
        ("lower", 17, 0.2, 0.235),
        ("both", 17, 0.375, 0.235),
    ],
)
def test_worked_numbers(schedule, steps_done, high, low) -> None:
    """The schedules of arXiv 2602.09782 worked out for p = 0.5 and 400 steps: H(p) = 0.375, M(p) = 0.235."""
    assert distances(schedule, steps_done) == pytest.approx((high, low), abs=1e-12)


def test_lambda_of_the_paper_at_every_step() -> None:
    upper, lower, standard, total = 0.375, 0.235, 0.2, 60
    for k in range(total + 1):
        weight = 1 - 2 * k / total
        if k <= total / 2:
            expected_id = (weight * upper + (1 - weight) * standard, standard)
            expected_did = (weight * standard + (1 - weight) * upper, standard)
        else:
            expected_id = (standard, (1 + weight) * lower - weight * standard)
            expected_did = (upper, (1 + weight) * lower - weight * standard)
        assert distances("id", k, total=total) == pytest.approx(expected_id, abs=1e-12)
        assert distances("did", k, total=total) == pytest.approx(expected_did, abs=1e-12)


def test_phases_end_where_the_split_was_written() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point; step 29 still ends phase 1 at the standard distance.
    assert distances("id", 29, total=100, phase_split=0.29) == (0.2, 0.2)
    high, low = distances("id", 30, total=100, phase_split=0.29)
    assert high == 0.2
    assert low == pytest.approx(0.235 - 0.035 / 71)
    assert distances("id", 10, total=100, phase_split=0.2)[0] == pytest.approx((0.375 + 0.2) / 2)
    assert distances("id", 60, total=100, phase_split=0.2)[1] == pytest.approx((0.235 + 0.2) / 2)


def test_od_follows_its_state_alone() -> None:
    for k in (0, 7, 399):
        assert distances("od", k, raising=True) == pytest.approx((0.375, 0.2))
        assert distances("od", k, raising=False) == pytest.approx((0.2, 0.235))


def test_od_hysteresis_by_hand() -> None:
    """Floor 0.2; the upper threshold falls by 0.08 a step from 1."""
    clip = FlexEcClip(kind="flexec", schedule="od")
    raising = False
    seen = []
    for k, entropy in enumerate([1.0, 0.5, 0.2, 0.5, 0.67, 0.61, 0.5, 0.15, 0.2]):
        raising = flexec_raises(clip, raising, entropy=entropy, entropy_start=1.0, steps_done=k, total_steps=10)
        seen.append(raising)
    # k = 4: 0.67 is not above 0.68; k = 5: 0.61 is above 0.6.
    assert seen == [False, False, True, True, True, False, False, True, True]
    low, high = flexec_thresholds(clip, entropy_start=1.0, steps_done=4, total_steps=10)
    assert (low, high) == pytest.approx((0.2, 0.68))


def test_a_step_outside_the_run_is_refused() -> None:
    for steps_done in (-1, 401):
        with pytest.raises(ValueError, match="not between 0 and total_steps 400"):
            distances("id", steps_done)


def test_perplexity_weight_is_a_staircase() -> None:
    bonus = PerplexityBonus(omega=0.8, decay_factor=0.5, decay_every_steps=50)
    assert [perplexity_omega(bonus, step=step) for step in (1, 50, 51, 100, 101)] == [0.8, 0.8, 0.4, 0.4, 0.2]
    assert perplexity_omega(PerplexityBonus(), step=10_000) == 1.0
