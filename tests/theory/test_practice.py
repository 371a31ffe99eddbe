"""`megarl theory RUN`: numbers of runs whose answer is known by construction."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from megarl.ablation.seeds import mean_over_seeds
from megarl.config.base import ConfigError
from megarl.report.run_data import read_run
from megarl.telemetry.run_directory import RunDirectory
from megarl.theory.practice import reading
from megarl.theory.practice.equal_entropy import choose_levels, common_range, difference_at, estimate_at, value_at
from megarl.theory.practice.estimates import of_ratio, shown
from megarl.theory.practice.numbers import ACTING, ALL, IDLE, Practice, RunNumbers, read_practice, write_practice
from megarl.theory.practice.reading import read_numbers
from megarl.theory.practice.statistics import agree, difference_within, doubling_group
from megarl.theory.practice.tables import build_practice_tables, sign_table
from megarl.theory.practice.updates import collect_updates
from tests.theory.practice_runs import RATE, RATIO, UPDATES, write_practice_run

RANDOM = np.random.default_rng(0)
BUDGETS = RANDOM.standard_normal((5, UPDATES))


def numbers_of(run: RunDirectory) -> RunNumbers:
    numbers, problems = read_numbers(read_run(run), setting="a", cell="a-seed0")
    assert problems == []
    return numbers


@pytest.mark.parametrize("slope", [3.0, -2.0])
def test_entropies_that_follow_their_budgets_have_their_slope(tmp_path: Path, slope: float) -> None:
    numbers = numbers_of(write_practice_run(tmp_path, budgets=BUDGETS, slope=slope))
    found = {
        name: numbers.get("prediction", "since the step began|all|plain", name)
        for name in ("n", "sign", "correlation", "slope", "error")
    }
    sign = math.copysign(1, slope)
    expected = {"n": 15, "sign": float(slope > 0), "correlation": sign, "slope": slope, "error": 0}
    assert found == pytest.approx(expected, abs=1e-5)
    for group, count in (("1", 5), ("2-3", 10)):
        key = f"since the step began|{group}|plain"
        assert numbers.get("prediction", key, "n") == count
        assert numbers.get("prediction", key, "slope") == pytest.approx(slope, abs=1e-5)
    assert numbers.get("prediction", "one step|all|plain", "n") == 4
    assert numbers.get("prediction", "one step|all|plain", "slope") == pytest.approx(slope, abs=1e-5)
    assert numbers.get("curve", "0", "measured") == pytest.approx(0, abs=1e-6)
    total = slope * RATE * BUDGETS.sum(axis=1)[:].mean() - slope * RATE * BUDGETS[:, -1].mean()
    assert numbers.get("curve", "3", "measured") == pytest.approx(total, abs=1e-5)


def test_one_update_is_measured_around_its_own_mini_batch(tmp_path: Path) -> None:
    """With a budget in update 1 alone, mini-batches 0 and 2 say all of it; update 2's window has it too."""
    budgets = np.zeros((4, UPDATES))
    budgets[:, 1] = [1.0, -2.0, 3.0, 0.5]
    numbers = numbers_of(write_practice_run(tmp_path, budgets=budgets, slope=2.0))
    assert numbers.get("prediction", "one update|2-3|plain", "slope") == pytest.approx(2.0, abs=1e-5)
    assert numbers.get("prediction", "one update|1|plain", "n") == 4
    assert math.isnan(numbers.get("prediction", "one update|1|plain", "slope"))  # nothing is predicted there


def test_what_happens_to_a_mini_batch_alone_is_not_taken_for_its_update(tmp_path: Path) -> None:
    """Mini-batch 2 is high by chance in the steps where its sign is negative: nothing fell around it."""
    differences = np.full((6, UPDATES), np.nan)
    differences[:, 2] = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
    run = write_practice_run(tmp_path, budgets=np.zeros((6, UPDATES)), slope=1.0, differences=differences)
    lines = [json.loads(line) for line in run.updates_path.read_text().splitlines()]
    for line in lines:
        line["actor/entropy"] += 0.5 * (line.get("entropy/clip_low_difference", 0.0) < 0)
    run.updates_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    numbers = numbers_of(run)
    found = {
        name: numbers.get("sign", "low", name) for name in ("change_negative", "change_other", "change_difference")
    }
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-6)
    assert numbers.get("curve", "2", "measured") == pytest.approx(0.25, abs=1e-6)


def test_signs_and_what_is_around_them(tmp_path: Path) -> None:
    """Update 1 has a negative difference in odd steps, where it raises the entropy by 0.1; else it lowers it by 0.2."""
    steps = 6
    differences = np.full((steps, UPDATES), np.nan)
    differences[:, 1] = [-1.0 if step % 2 else 2.0 for step in range(steps)]
    budgets = np.zeros((steps, UPDATES))
    budgets[:, 1] = np.where(differences[:, 1] < 0, 0.1, -0.2) / RATE
    numbers = numbers_of(write_practice_run(tmp_path, budgets=budgets, slope=1.0, differences=differences))
    expected = {
        "updates": 6,
        "negative": 0.5,
        "difference": 0.5,
        "contribution": 0.05,
        "against": 0.5,
        "agree": 1.0,
        "change_negative": 0.1,
        "change_other": -0.2,
        "change_difference": 0.3,
    }
    found = {name: numbers.get("sign", "low", name) for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)
    assert math.isnan(numbers.get("sign", "high", "updates"))


def test_whole_steps_are_measured_around_them(tmp_path: Path) -> None:
    """Steps 1, 2 and 5 have the sign below 0; the entropy before steps 1 to 6 is 1, 1, 2, 4, 7, 7."""
    differences = np.full((6, UPDATES), np.nan)
    differences[:, 1] = [-1.0, -1.0, 1.0, 1.0, -1.0, 1.0]
    budgets = np.zeros((6, UPDATES))
    budgets[:, 1] = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0]) / RATE
    numbers = numbers_of(write_practice_run(tmp_path, budgets=budgets, slope=1.0, differences=differences))
    found = {name: numbers.get("sign", "low", name) for name in ("steps", "steps_negative", "step_difference")}
    # Around steps 2 and 5: 2 - 1 and 7 - 4; around 3 and 4: 4 - 1 and 7 - 2.
    assert found == pytest.approx({"steps": 6, "steps_negative": 0.5, "step_difference": 2 - 4}, abs=1e-5)


def test_tokens_of_the_set(tmp_path: Path) -> None:
    """Half of the tokens are clipped; of one mini-batch in four N - Q is below 0."""
    numbers = numbers_of(write_practice_run(tmp_path, budgets=np.zeros((2, UPDATES)), slope=1.0))
    found = {name: numbers.get("tokens", "low|all|0", name) for name in ("tokens", "inside", "negative", "dropped")}
    assert found == {"tokens": 32, "inside": 16, "negative": 4, "dropped": 16}
    assert numbers.get("tokens", "low|all|0", "mass") == pytest.approx(16 * RATIO, rel=1e-5)
    assert numbers.get("tokens", "low|all|0", "gap") == pytest.approx(RATIO * 4 * (0.1 - 0.2 + 0.1 + 0.3), rel=1e-4)
    assert numbers.get("tokens", "low|all|0", "gap_negative") == pytest.approx(-RATIO * 4 * 0.2, rel=1e-4)
    assert numbers.get("tokens", "low|surprisal|3", "inside") == 16  # -log 0.25 is in 1 to 2
    assert [numbers.get("tokens", f"low|position|{index}", "inside") for index in (0, 1)] == [16, 0]
    assert math.isnan(numbers.get("tokens", "high|all|0", "inside"))  # its bound is off


def test_own_entropy_of_the_sets_tokens(tmp_path: Path) -> None:
    budgets = np.zeros((2, UPDATES))
    budgets[:, 0] = 1.0
    numbers = numbers_of(write_practice_run(tmp_path, budgets=budgets, slope=0.2))
    # Mini-batch 1 alone is negative; it, 2 and 3 have changed by 0.2 * RATE, mini-batch 0 by nothing.
    assert numbers.get("tokens", "low|all|0", "change_negative") == pytest.approx(4 * 0.1, abs=1e-5)
    assert numbers.get("tokens", "low|all|0", "change_other") == pytest.approx(8 * 0.1, abs=1e-5)


def test_a_states_budget_is_that_of_its_first_tokens(tmp_path: Path) -> None:
    """Their coefficient is 2 and there are two of each prompt; no state's entropy changes from step to step."""
    numbers = numbers_of(write_practice_run(tmp_path, budgets=np.zeros((3, UPDATES)), slope=1.0))
    assert numbers.get("prediction", "own state|all|plain", "n") == 2 * UPDATES
    assert numbers.get("prediction", "own state|all|plain", "slope") == pytest.approx(0.0, abs=1e-6)


def test_plain_steps_count_by_eps_and_momentum_averages() -> None:
    config = {"policy": {"optimizer": {"lr": 10.0, "eps": 1e3, "beta1": 0.5}}}
    lines = [
        {"step": 1, "update": 0, "actor/lr": 10.0, "entropy/budget": 4.0},
        {"step": 1, "update": 1, "actor/lr": 10.0, "entropy/budget": 1.0},
        {"step": 2, "update": 0, "actor/lr": 20.0, "entropy/budget": 3.0},
    ]
    found = collect_updates(lines, config)
    assert found[1].plain == pytest.approx([0.04, 0.01])
    assert found[2].plain == pytest.approx([0.06])
    # m: 2, 1.5, 2.25; over 1 - 0.5^t: 4, 2, 18/7.
    assert found[1].momentum == pytest.approx([0.04, 0.02])
    assert found[2].momentum == pytest.approx([0.02 * 18 / 7])
    assert collect_updates(lines[1:], config).keys() == {2}  # step 1 lacks its first update


def test_agreement_by_hand() -> None:
    found = agree(np.array([1.0, 2.0, -1.0, np.nan]), np.array([2.0, 2.0, 1.0, 5.0]))
    assert found is not None
    assert (found.n, found.slope) == (3, pytest.approx(5 / 6))
    assert found.sign == pytest.approx(2 / 3)
    assert found.error == pytest.approx(math.sqrt((9 - 25 / 6) / 9))
    assert agree(np.array([np.nan]), np.array([1.0])) is None
    assert math.isnan(difference_within(np.ones(3), np.ones(3), np.zeros(3)))
    # Levels of the places differ by 10, which is no difference of the chosen.
    changes, chosen = np.array([10.0, 11.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0, 1.0])
    assert difference_within(changes, chosen, np.array([0, 0, 1, 1, 1])) == pytest.approx(1.0)
    assert [doubling_group(n) for n in (1, 2, 3, 4, 7, 8, 15)] == ["1", "2-3", "2-3", "4-7", "4-7", "8-15", "8-15"]


def test_a_number_of_fewer_seeds_than_its_row_says_of_how_many() -> None:
    two, one = mean_over_seeds([0.1, 0.3]), mean_over_seeds([-0.0001])
    assert shown(two, digits=1, of=3) == "0.2 ± 1.3 [2]"
    assert shown(two, digits=1, of=2) == shown(two, digits=1) == "0.2 ± 1.3"
    assert (shown(one, digits=2, of=2, sign=True), shown(None, of=3)) == ("+0.00 [1]", "-")


def test_a_run_without_traces_or_rollouts_says_so(tmp_path: Path) -> None:
    untraced = write_practice_run(tmp_path, budgets=BUDGETS, slope=1.0, traced=False)
    numbers, problems = read_numbers(read_run(untraced), setting="a", cell="a")
    assert problems == ["no response was traced (logging.traced_responses), so nothing is said of tokens"]
    assert numbers.get("prediction", "since the step began|all|plain", "slope") == pytest.approx(1.0, abs=1e-5)
    bare = write_practice_run(tmp_path, budgets=BUDGETS, slope=1.0, seed=1)
    for path in bare.rollouts.iterdir():
        path.unlink()
    bare.updates_path.unlink()
    _, problems = read_numbers(read_run(bare), setting="a", cell="a")
    assert problems == ["has no updates.jsonl", "has no rollouts/, so no entropy on the same tokens"]


def test_a_damaged_file_costs_its_step_and_many_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_practice_run(tmp_path, budgets=BUDGETS, slope=1.0)
    run.rollouts_path(2).write_bytes(b"PAR1 no more")
    numbers, problems = read_numbers(read_run(run), setting="a", cell="a")
    assert [problem.partition(":")[0] for problem in problems] == ["rollouts/step-000002.parquet cannot be read"]
    assert numbers.get("run", "", "steps_with_both") == 4
    lines = run.updates_path.read_bytes().splitlines(keepends=True)
    run.updates_path.write_bytes(b"".join([lines[0], b"\0\0\n", *lines[2:], b"42\n"]))
    monkeypatch.setattr(reading, "MOST_FILES", 3)
    numbers, problems = read_numbers(read_run(run), setting="a", cell="a")
    assert problems.pop(0) == 'updates.jsonl, line 2 and 1 more: expected a JSON object with a "step"; left out'
    assert problems == ["3 of 5 rollouts were read, evenly from the first to the last"]
    assert numbers.get("run", "", "files") == 3


def practice_of(*runs: tuple[str, int, dict[int, float], dict[int, float]]) -> Practice:
    """(setting, seed, entropy before each step, reward of it)."""
    made = []
    for setting, seed, entropies, rewards in runs:
        run = RunNumbers(setting=setting, cell=f"{setting}-seed{seed}", seed=seed)
        for step, entropy in entropies.items():
            run.put("series", str(step), {"actor/old_entropy": entropy, "reward/mean": rewards[step]})
            run.put("series", str(step - 1), {"entropy_after": entropy, "eval/held/mean@8": 10 * rewards[step]})
        made.append(run)
    return Practice(name="x", runs=tuple(made), controls={"b": "a"})


def test_values_at_an_entropy() -> None:
    practice = practice_of(
        ("a", 0, {1: 1.0, 2: 0.5, 3: 0.75, 4: 0.25}, {1: 0.0, 2: 0.1, 3: 0.2, 4: 0.3}),
        ("b", 0, {1: 1.0, 2: 0.6}, {1: 0.0, 2: 0.4}),
    )
    a, b = practice.runs
    assert value_at(a, "reward/mean", 0.5) == pytest.approx(0.25)  # the last of three times
    assert value_at(a, "eval/held/mean@8", 0.5) == pytest.approx(2.5)
    assert value_at(a, "step", 0.5) == pytest.approx(3.5)
    assert value_at(b, "reward/mean", 0.8) == pytest.approx(0.2)
    assert value_at(b, "reward/mean", 0.5) is None
    assert common_range(practice) == pytest.approx((0.6, 1.0))
    difference = difference_at(practice, "b", "a", "reward/mean", 0.8)
    assert difference is not None
    assert difference.value == pytest.approx(0.2 - 0.04)  # a has 0.8 between steps 1 and 2 alone
    levels = choose_levels(practice)
    assert [level.entropy for level in levels] == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.375])
    assert [level.never for level in levels] == [(), (), (), ("b",), ("b",)]
    assert estimate_at(practice, "b", "reward/mean", 0.5) is None


def test_settings_without_a_common_entropy() -> None:
    practice = practice_of(("a", 0, {1: 1.0, 2: 0.8}, {1: 0.0, 2: 0.1}), ("b", 0, {1: 0.7, 2: 0.5}, {1: 0.0, 2: 0.1}))
    assert common_range(practice) is None
    (table,) = build_practice_tables(practice)
    assert table.title == "At equal entropy"
    assert any("no run of: b" in note for note in table.notes)


def test_means_are_over_seeds_and_all_settings_of_a_seed_are_one() -> None:
    runs = []
    for setting, seed, share in (("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.5), ("b", 1, 0.7)):
        run = RunNumbers(setting=setting, cell=f"{setting}{seed}", seed=seed)
        run.put("sign", "low", {"negative": share, "updates": 10.0})
        run.put("tokens", "low|all|0", {"inside": 10.0 if setting == "a" else 30.0, "negative": 10 * share})
        runs.append(run)
    practice = Practice(name="x", runs=tuple(runs))
    every = practice.estimate(ALL, "sign", "low", "negative")
    assert every is not None
    assert (every.value, every.n) == (pytest.approx(0.4), 2)
    assert every.half_width == pytest.approx(12.706 * 0.1, rel=1e-3)  # t(1) s / sqrt(2) of 0.3 and 0.5
    ratio = of_ratio(practice, ALL, "low|all|0", "negative", "inside")
    assert ratio is not None
    assert ratio.value == pytest.approx((6 / 40 + 10 / 40) / 2)
    assert practice.groups == [ALL]


def test_settings_whose_bounds_act_are_apart_from_those_whose_do_not() -> None:
    runs = []
    for setting, acted, share in (("clip", 3.0, 0.1), ("coin", 0.0, 0.5), ("none", None, None)):
        run = RunNumbers(setting=setting, cell=setting, seed=0)
        if acted is not None:
            run.put("sign", "low", {"acted": acted, "negative": share, "updates": 10.0})
            run.put("tokens", "low|all|0", {"tokens": 100.0, "inside": 10.0, "negative": 10 * share})
        runs.append(run)
    practice = Practice(name="x", runs=tuple(runs))
    assert practice.groups == [ALL, ACTING, IDLE]
    for group, share in ((ALL, 0.3), (ACTING, 0.1), (IDLE, 0.5)):
        found = practice.estimate(group, "sign", "low", "negative")
        ratio = of_ratio(practice, group, "low|all|0", "negative", "inside")
        assert found is not None
        assert ratio is not None
        assert found.value == pytest.approx(share)
        assert ratio.value == pytest.approx(share)
    rows = sign_table(practice).rows
    assert [row[1:3] for row in rows] == [(ALL, "20"), (ACTING, "10"), (IDLE, "10"), ("clip", "10"), ("coin", "10")]


def test_the_file_keeps_every_number(tmp_path: Path) -> None:
    run = write_practice_run(tmp_path, budgets=BUDGETS, slope=2.0, evaluated=True)
    numbers, _ = read_numbers(read_run(run), setting="a", cell="a-seed0")
    practice = Practice(name="x", runs=(numbers,), controls={"a": "b"}, notes=("left out",))
    write_practice(practice, tmp_path / "x.practice.parquet")
    back = read_practice(tmp_path / "x.practice.parquet")
    assert (back.name, back.controls, back.notes) == ("x", {"a": "b"}, ("left out",))
    assert back.runs[0].values == pytest.approx(numbers.values, rel=1e-6)
    assert build_practice_tables(back) == build_practice_tables(practice)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        read_practice(tmp_path / "x.parquet")
    run = write_practice_run(tmp_path, budgets=BUDGETS, slope=1.0)
    with pytest.raises(ConfigError, match=re.escape("expected a table that `megarl theory RUN|ABLATION` wrote")):
        read_practice(run.rollouts_path(1))
