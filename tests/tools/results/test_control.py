"""control.md: what it says of made-up runs whose truth is known, and that other numbers make it say something else."""

import math
from pathlib import Path

import numpy as np
import pytest
from results import control_loop, control_loop_words, control_methods, control_schedules, control_schedules_words
from results.control import compute, figures
from results.documents import MissingTableError, write_document
from results.reading import Results

from megarl.ablation.stored import StoredAblation
from tests.tools.results.control_tables import START, Physics, made, write_made

STEERED = ("od", "adaptive", "adaptive-trl")
"""What is to hold the entropy without a loop."""
NAMES = ("true-reward-small", "flexec-small", "methods-2026-small", "control-small", "control-random-small")
SLOW = ("symmetric", "grpo")


def results_of(name: str, physics: Physics) -> Results:
    return in_memory(made(name, physics))


def in_memory(stored: StoredAblation) -> Results:
    return Results(stored, Path(f"{stored.facts.name}.parquet"))


def falls(setting: str, done: float) -> float:
    """The control's entropy furthest."""
    return 1 - (0.5 if setting in SLOW else 0.2) * done


def holds(setting: str, done: float) -> float:
    """Loops follow their target, the others fall by a half."""
    if setting == "rise-fall":
        return float(np.interp(done, [0, 0.5, 1], [1, 1.2, 0.6]))
    return 1.0 if setting.startswith("hold") else 1 - 0.5 * done


def waves(setting: str, done: float) -> float:
    """Every schedule as it is to go; the constant bounds straight down."""
    knots = {"id": 0.5, "id-split0.3": 0.3, "id-split0.6": 0.6}
    if setting in knots:
        return float(np.interp(done, [0, knots[setting], 1], [1, 1.4, 0.8]))
    if setting == "did":
        return float(np.interp(done, [0, 0.25, 0.5, 1], [1, 0.7, 1.1, 0.5]))
    if setting == "od":
        return (1 - 0.8 * done) * (0.6 + 0.4 * np.cos(6 * np.pi * done))
    return 1 - 0.3 * done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five tables."""
    found = tmp_path_factory.mktemp("tables")
    answers = {"": 0.5, "symmetric": 0.4}
    write_made(found, NAMES[0], Physics(course=falls, answers=answers))
    write_made(found, NAMES[1], Physics(course=waves, steps=30, switches=True))
    write_made(found, NAMES[2], Physics(course=falls, seeds=(0,)))
    write_made(found, NAMES[3], Physics(course=holds, answers=answers))
    write_made(found, NAMES[4], Physics(course=holds, seeds=(0, 1)))
    return found


def test_the_document_has_every_part_its_figures_and_one_text(folder: Path) -> None:
    written = write_document("control", folder)
    for name in NAMES:
        assert f"\n{name}: " in written.text
        assert f"configs/ablations/{name}.toml" in written.text
    assert "Not in here" not in written.text
    assert len(written.figures) == 11
    assert "(−0.011 to +0.042)" in written.text
    assert "In brackets is the interval over problems" in written.text
    for file in written.figures:
        assert written.text.count(f"](figures/{file})") == 1, file
    assert written == write_document("control", folder)
    assert max(len(line) for line in written.text.splitlines() if not line.startswith(("|", "!", "#"))) <= 120
    assert "nan" not in written.text.lower().replace("nanos", "")


def test_parts_whose_tables_are_not_stored_are_named_and_left_out(tmp_path: Path) -> None:
    with pytest.raises(MissingTableError, match="control-small"):
        write_document("control", tmp_path)
    write_made(tmp_path, "control-small", Physics(course=holds))
    text = " ".join(write_document("control", tmp_path).text.split())
    assert "true-reward-small, flexec-small, methods-2026-small and control-random-small." in text
    assert "FlexEC's schedules" not in text
    assert "What it costs" not in text  # no evaluation


def test_constant_bounds_are_judged_by_their_intervals() -> None:
    good = results_of(NAMES[0], Physics(course=falls, answers={"": 0.5, "symmetric": 0.4}))
    told = compute({NAMES[0]: good})["bounds"]
    assert "no-clip-high, balanced and no-clip-low keep more entropy than symmetric" in told["question"]
    assert "have a higher pass@n, and none of them is seen to pay" in told["question"]
    assert "**reproduced**, no-clip-high less symmetric" in told["claims"][0]
    assert "**undecided**, balanced less no-clip-high" in told["claims"][1]
    assert "**contradicted**, no-clip-low less symmetric" in told["claims"][2]
    assert "above the control" in told["answers"][0]
    paid = results_of(NAMES[0], Physics(course=falls, answers={"": 0.3, "symmetric": 0.4}))
    told = compute({NAMES[0]: paid})["bounds"]
    assert "none of them is seen to have a higher pass@n" in told["question"]
    assert "pay for it in mean@n" in told["question"]
    same = results_of(NAMES[0], Physics(course=lambda setting, done: 1 - done, answers={"": 0.4}, noise=0.05))
    assert compute({NAMES[0]: same})["bounds"]["question"].startswith("No setting keeps more entropy")


def test_schedules_are_found_as_they_were_made() -> None:
    results = results_of(NAMES[1], Physics(course=waves, steps=30, switches=True))
    judged = [control_schedules.judge(results, one.name) for one in results.facts.settings]
    assert [one.found.answer for one in judged if one and one.found] == ["yes"] * 5
    assert [one is None for one in judged] == [True, True, *[False] * 5]
    told = control_schedules_words.compute(results)
    assert "id, did, od, id-split0.3 and id-split0.6 have the intended shape." in told["answers"]
    assert "switched 2, 2 and 2 times" in told["oscillation"][0]
    shapes = control_schedules.shape_of(results, "id-split0.3"), control_schedules.shape_of(results, "did")
    assert [one.knots for one in shapes if one] == [(0.3,), (0.25, 0.5)]


def test_schedules_that_do_nothing_are_not_found() -> None:
    results = results_of(NAMES[1], Physics(course=lambda setting, done: 1 - 0.3 * done, steps=20))
    told = control_schedules_words.compute(results)
    assert "no schedule is found to have its shape" in told["answers"]
    assert "id, did, od, id-split0.3 and id-split0.6 have not" in told["answers"]
    assert "never switched" in told["oscillation"][0]
    assert "none of id, did, id-split0.3 and id-split0.6 is found to go the intended way" in told["beside_answers"]
    one_seed = results_of(NAMES[1], Physics(course=waves, steps=20, seeds=(0,)))
    told = control_schedules_words.compute(one_seed)
    assert "of id, did, od, id-split0.3 and id-split0.6 it is open" in told["answers"]
    assert told["noise"] == "Of one seed every answer is open, so it cannot."


def test_runs_too_short_for_a_phase_are_open() -> None:
    results = results_of(NAMES[1], Physics(course=waves, steps=4))
    judged = control_schedules.judge(results, "id-split0.6")
    assert judged
    assert judged.found is None
    assert "a phase has too few steps" in control_schedules_words.compute(results)["shapes"]


def test_a_budget_s_sign_is_set_beside_the_entropy_s() -> None:
    physics = Physics(course=falls, seeds=(0,), noise=0.0, budget=lambda name: 0.02 if name == "stare" else -0.05)
    results = results_of(NAMES[2], physics)
    moved = {
        name: control_methods.read_moved(run, name, seed)
        for name, runs in results.runs.items()
        for seed, run in runs.items()
    }
    assert moved["stare"].budget > 0 > moved["nsr"].budget
    assert moved["nsr"].change == pytest.approx(-START * 0.2 * 11 / 12, rel=1e-4)
    assert moved["nsr"].parts == pytest.approx((-0.15 / 0.25, 0.0, 0.1 / 0.25, 0.0))
    assert (moved["nsr"].agreeing, moved["stare"].agreeing, moved["nsr"].steps) == (11, 0, 11)
    told = control_methods.compute(results)
    assert "in 9 of 10 (not in stare). Step by step it has in 99 of 110 (90 %)" in told["signs"]
    assert told["against"].startswith(
        "symmetric moves it by −0.321 nats from 0.700. More entropy than it at the end have"
    )
    assert told["seeds"] == "One seed"


def test_a_budget_of_nothing_has_no_sign() -> None:
    physics = Physics(course=falls, seeds=(0,), noise=0.0, budget=lambda name: 0.0 if name == "opefo" else -0.05)
    results = results_of(NAMES[2], physics)
    told = control_methods.compute(results)
    assert told["signs"].startswith(
        "The budget is negative in every step of all 9, so no more can be said of its sign than how often the entropy "
        "falls: over the run in 9 of 9, and in 99 of 99 steps (100 %). Not counted"
    )
    assert told["order"] == "Their shares are too few, or too much alike, to set them in an order."
    assert told["signs"].endswith("0 to two digits: opefo, whose entropy changes by −0.128 nats all the same.")
    (row,) = [line for line in told["table"].splitlines() if line.startswith("| opefo")]
    assert "| none | – |" in row
    physics = Physics(course=falls, seeds=(0,), noise=0.0, budget=lambda name: 0.0)
    assert control_methods.compute(results_of(NAMES[2], physics))["signs"] == "No run's budget has a sign."


def test_a_loop_is_held_against_its_own_target_and_the_others_against_the_start() -> None:
    results = results_of(NAMES[3], Physics(course=holds))
    constant, moving = control_loop.find_targets(results)
    assert constant.label == "the starting entropy"
    assert constant.settings == ("symmetric", "balanced", *STEERED, "hold", "hold-low", "hold-flexec")
    assert moving.settings == ("symmetric", "rise-fall")
    assert moving.label == "a line through 1 at 0, 1.2 at 0.5, 0.6 at 1 of the run"
    assert max(one.rms for one in control_loop.held(results, "rise-fall", moving).values()) < 0.02
    errors = control_loop.held(results, "symmetric", constant)[0]
    assert errors.largest == pytest.approx(0.5 * 11 / 12, abs=0.02)
    assert errors.bias == pytest.approx(-0.5 * np.arange(4, 12).mean() / 12, abs=0.008)  # three steps are for settling
    told = control_loop_words.compute(results)
    assert "hold, hold-low and hold-flexec are nearer to it than symmetric" in told["targets"][0]["said"]
    assert (
        "hold is nearer to it than symmetric, balanced, od, adaptive and adaptive-trl by an interval"
        in told["targets"][0]["others"][0]
    )


def test_of_one_seed_no_interval_is_spoken_of() -> None:
    told = control_loop_words.compute(results_of(NAMES[3], Physics(course=holds, seeds=(0,))))
    first = told["targets"][0]
    assert "against symmetric there is no interval, of one seed." in first["said"]
    assert (
        first["others"][0] == "hold is nearer than symmetric, balanced, od, adaptive and adaptive-trl in the one seed."
    )


def test_a_loop_that_misses_says_whether_its_bounds_were_at_their_end() -> None:
    def misses(setting: str, done: float) -> float:
        return 1 - 0.5 * done

    short = results_of(NAMES[3], Physics(course=misses))
    told = control_loop_words.compute(short)
    assert "No setting keeps within 10 %" in told["targets"][0]["said"]
    assert told["reach_said"][0].startswith(
        "hold misses its target for want of reach: in every seed the entropy is on average below it, and 100 % of its "
        "updates asked for more"
    )
    above = results_of(NAMES[3], Physics(course=lambda setting, done: 1 + 0.5 * done, wanted=0.5))
    told = control_loop_words.compute(above)
    assert told["reach_said"][0].startswith("hold misses its target to both sides: 100 % of its updates")
    around = results_of(NAMES[3], Physics(course=lambda setting, done: 1 + 0.3 * math.sin(20 * done)))
    told = control_loop_words.compute(around)
    assert told["reach_said"][0].startswith("hold misses its target to both sides: 100 % of its updates asked for more")
    within = results_of(NAMES[3], Physics(course=misses, knob=0.4, wanted=0.0, predicted=0.0))
    # The predictions' wave is wider than the band, so what is asked for is what they are.
    rows = [row for run in within.runs["hold"].values() for row in run.read_updates()]
    for row in rows:
        row["control/loop_wanted"] = row["control/loop_predicted"]
    told = control_loop_words.compute(within)
    assert "hold misses its target within its reach: 0 % of its updates asked for more than" in told["reach_said"][0]


@pytest.mark.parametrize(("raises", "words"), [(0.01, "for higher than"), (-0.01, "for lower than")])
def test_predictions_are_fitted_to_what_followed(raises: float, words: str) -> None:
    """What updates add within a step is gone at the next one's start: then the loop's estimate is off by it."""
    results = results_of(NAMES[3], Physics(course=holds, raises=raises, slope=0.01))
    found = control_loop.predictions(results, "hold")[0]
    assert found.updates
    assert (found.updates.slope, found.updates.pairs) == (pytest.approx(0.01, rel=1e-3), 12 * 3)
    assert found.estimate_bias == pytest.approx(3 * raises, abs=0.003)
    told = control_loop_words.compute(results)["predictions_said"]
    assert told[0].startswith("More predicted is more measured within a step of hold")
    assert f"the loop takes the entropy {words}" in told[3]
    assert "hold, hold-low, hold-flexec and rise-fall." in told[3]
    assert "the prediction is right" in control_loop_words.compute(results)["pass_said"]


def test_what_the_first_order_does_not_see_is_told_with_its_sign() -> None:
    """Predictions are a wave around 0, whatever the entropy does."""
    falling = results_of(NAMES[3], Physics(course=lambda setting, done: 1 - 0.5 * done, noise=0.001))
    told = control_loop_words.compute(falling)["predictions_said"]
    assert told[2].startswith("Where the mean prediction of a step is 0 the entropy falls all the same of hold")
    rising = results_of(NAMES[3], Physics(course=lambda setting, done: 1 + 0.5 * done, noise=0.001))
    told = control_loop_words.compute(rising)["predictions_said"]
    assert told[2].startswith("Where the mean prediction of a step is 0 the entropy rises all the same of hold")


def test_a_loop_without_its_updates_is_refused() -> None:
    stored = made(NAMES[3], Physics(course=holds))
    results = in_memory(StoredAblation(facts=stored.facts, table=stored.table))
    with pytest.raises(ValueError, match="hold-seed0: expected updates with control/loop_"):
        control_loop_words.compute(results)


def test_bonuses_and_both_rewards_are_told() -> None:
    tables = {
        NAMES[3]: results_of(NAMES[3], Physics(course=lambda setting, done: 1 - 0.5 * done)),
        NAMES[4]: results_of(NAMES[4], Physics(course=holds)),
    }
    values = compute(tables)
    assert "under the random reward hold, hold-flexec and rise-fall are nearer to the target" in values["both"]
    bonuses = values["loops"][1]["bonus"]
    assert [text.split(" acted")[0] for text in bonuses] == ["The bonus of adaptive", "The bonus of adaptive-trl"]
    assert set(figures(tables)) == {"loop-entropy-target", "random-entropy-target"}
