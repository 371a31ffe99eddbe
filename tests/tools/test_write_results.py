"""docs/results says what its tables say; prose follows the numbers."""

import re
from pathlib import Path

import numpy as np
import pytest
import write_results
from results import documents
from results.clipping import labels
from results.clipping_levels import wandering_words
from results.clipping_matched import moved_table, moved_words
from results.clipping_prediction import factor_words
from results.first_order import step_slopes
from results.markdown import wrap
from results.reading import Results
from results.words import estimate, listed, overall, short, signed, verdict

from megarl.ablation.seeds import SeedMean, mean_over_seeds
from megarl.report.predicted import entropy_changes
from tests.tools.stored_tables import StoredNumbers, make_stored, noise, write_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FIRST, SECOND = "random-reward-small", "random-reward-products-small"
ALONE = "random-reward-first-step-small"


def clip_numbers(effects: dict[str, float]) -> StoredNumbers:
    """Runs whose entropy falls by 0.02 of its start a step, and by a clip's effect less; coins are as none."""

    def of_step(setting: str, seed: int, step: int) -> dict[str, float]:
        share = 1 + (effects.get(setting, 0.0) - 0.02) * (step - 1)
        share += 0.002 * noise(setting, seed, step) * (step > 1)
        is_coin = setting.endswith("-coin")
        numbers = {"actor/entropy_over_start": share, "actor/old_entropy": share, "actor/lr": 1e-3, "reward/mean": 0.5}
        numbers["actor/ppo_kl"] = (0.03 if is_coin else 0.02 if setting.startswith("low") else 0.06) + 1e-4 * share
        for side in ("low", "high"):
            numbers[f"clip_ratio/{side}_mean"] = 0.0 if is_coin or side not in setting else 0.02
            if is_coin:
                numbers[f"matched/{side}_dropped"] = 0.02 + 0.001 * noise(setting, seed) if side in setting else 0.0
        return numbers

    def of_update(setting: str, seed: int, step: int, update: int) -> dict[str, float]:
        effect = effects.get(setting, 0.0)
        budget = effect - 0.02 + 0.001 * noise(setting, seed, step, update)
        removed = {f"entropy/budget_removed_{side}": -effect * (side in setting) for side in ("low", "high")}
        terms = {f"entropy/clip_{side}_contribution": abs(effect) * (side in setting) for side in ("low", "high")}
        return {"actor/lr": 1e-3, "entropy/budget": budget, **removed, **terms}

    return of_step, of_update


AS_CLAIMED = {"low0.2": 0.004, "low0.1": 0.008, "high0.2": -0.004, "high0.1": -0.008, "symmetric": -0.004}
TURNED = {name: -value for name, value in AS_CLAIMED.items()}


def store(folder: Path, name: str, effects: dict[str, float], seeds: int = 3, steps: int = 10) -> Path:
    numbers = clip_numbers(effects)
    task = {"data.train.task": "chain_sum" if name == FIRST else "products"}
    return write_table(folder, make_stored(name, *numbers, seeds=range(seeds), config=task, steps=steps))


@pytest.mark.parametrize("name", documents.document_names())
def test_a_document_is_what_its_tables_say(name: str) -> None:
    """One whose tables are not all stored yet is not there either."""
    if documents.missing_tables(name, RESULTS / "tables"):
        assert not (RESULTS / f"{name}.md").exists()
        return
    assert write_results.stale(documents.write_document(name, RESULTS / "tables"), RESULTS) == []


def test_every_stored_table_is_read_by_a_document() -> None:
    read = {table for name in documents.document_names() for table in tables_of(name)}
    stored = {path.name.partition(".")[0] for path in (RESULTS / "tables").glob("*.parquet")}
    assert stored <= read


def tables_of(name: str) -> tuple[str, ...]:
    module = documents.module_of(name)
    return (*module.TABLES, *module.OPTIONAL)


def test_a_missing_table_is_said_with_the_commands_that_make_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        write_results.main(["clipping", "--tables", str(tmp_path), "--into", str(tmp_path / "out")])
    assert str(stopped.value).splitlines()[1:] == [
        "    megarl ablate configs/ablations/random-reward-small.toml",
        "    python tools/store_results.py runs/random-reward-small-ablation-*",
    ]
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="no document 'clippings'; expected clipping"):
        write_results.main(["clippings"])


def test_without_names_what_is_not_stored_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results.main(["--tables", str(tmp_path), "--into", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "left out clipping: not stored are random-reward-small\n" in told
    assert "left out control: not stored are control-small\n" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("effects", "word"), [(AS_CLAIMED, "reproduced"), (TURNED, "contradicted"), ({}, "undecided")])
def test_clipping_follows_the_numbers(tmp_path: Path, effects: dict[str, float], word: str) -> None:
    store(tmp_path, FIRST, effects)
    text = documents.write_document("clipping", tmp_path).text
    claims = re.findall(r"\* \*\*\((\w)\) [^*]*\*\* On chain_sum \*\*(\w+)\*\* at the end", " ".join(text.split()))
    assert claims == [(letter, word) for letter in "abc"]
    (counts,) = re.findall(r"Of 8 differences (\d) are as claimed at the end, (\d) the other way", text)
    if effects:  # of nothing, one of twenty intervals may be decided
        assert counts == {"reproduced": ("8", "0"), "contradicted": ("0", "8")}[word]
    assert ("has the sign of the measured one for low0.2" in " ".join(text.split())) == bool(effects)
    assert "(of 3 seeds: too few to say what chance gives)" in " ".join(text.split())
    assert "random-reward-products-small (`megarl ablate" in " ".join(text.split())


@pytest.mark.parametrize(("effects", "word"), [(AS_CLAIMED, "reproduced"), (TURNED, "contradicted")])
def test_one_step_alone_is_judged_for_itself(tmp_path: Path, effects: dict[str, float], word: str) -> None:
    store(tmp_path, FIRST, {})
    store(tmp_path, ALONE, {clip: 4 * effect for clip, effect in effects.items()}, seeds=6, steps=2)
    written = documents.write_document("clipping", tmp_path)
    text = " ".join(written.text.split())
    answers = re.findall(r"In one step alone, on products with 6 other seeds: \*\*(\w+)\*\* \(([^)]*)\)", text)
    assert [answer for answer, _ in answers] == [word] * 3
    assert answers[0][1].startswith("low0.2 less its coin **" + ("+" if word == "reproduced" else "−"))
    rows = re.findall(
        r"\| \((\w)\) (\S+ less [^|]+) \| [+−] \| \*\*\S+ ± \S+\*\* (\w+) \| (\d), (\d) against \|", written.text
    )
    seeds = ("6", "0") if word == "reproduced" else ("0", "6")
    assert rows == [
        ("a", "low0.2 less its coin", word, *seeds),
        ("b", "high0.2 less its coin", word, *seeds),
        ("c", "symmetric less its coin", word, *seeds),
        ("c", "symmetric less none", word, *seeds),
    ]
    assert re.search(r"of −?0\.\d\d \(with the seeds dealt anew one in twenty is beyond ±0\.\d\d\)", text)
    assert "chosen afterwards: low0.2 less its coin **" in text
    assert "Where both are decided, the measured is some 2" in text
    assert "Of 4 differences" in text
    assert "Together they took about 3.0 hours." in text  # an hour and a half each
    assert "| low0.2, low | 2.00 ± 0.00 | " in text
    assert "clipping-first-step.svg" in written.figures
    below = [re.search(rf"{clip}: lower than its coin in (\d) of 6 seeds", written.figures["clipping-first-step.svg"])
             for clip in ("low0.2", "high0.2")]  # fmt: skip
    assert [one and one[1] for one in below] == (["0", "6"] if word == "reproduced" else ["6", "0"])


def test_how_far_a_clip_goes_is_set_beside_its_coin_s(tmp_path: Path) -> None:
    found = Results(make_stored(FIRST, *clip_numbers({})), tmp_path)
    told = moved_words({"chain_sum": found})
    assert told.startswith(
        "The policy goes further with the coin than with the clip: on chain_sum for low0.2 and low0.1 (1.5 times "
        "the KL). It goes further with high0.2, high0.1 and symmetric on chain_sum than with the coin. So a part of"
    )
    assert "is open for" not in told
    assert "| low0.2 | 0.0201 ± 0.0000 | 0.0301 ± 0.0000 | **−0.0100 ± 0.0000** |" in moved_table(found, 1)
    same = make_stored(FIRST, lambda *_: {"actor/ppo_kl": 0.5, "actor/lr": 1e-3}, clip_numbers({})[1])
    assert moved_words({"x": Results(same, tmp_path)}).endswith(
        " for low0.2, low0.1, high0.2, high0.1 and symmetric on x."
    )


def test_sizes_are_set_beside_what_they_can_be_set_beside(tmp_path: Path) -> None:
    """Theorem 1's factor, the slope beside the ratio of sizes, and how near runs end to the two ends of entropy."""
    stored = make_stored(FIRST, *clip_numbers(AS_CLAIMED), config={
        "reward.verifier.kind": "random",
        "reward.verifier.distribution": "bernoulli",
        "reward.verifier.p": 0.4,
        "objective.advantage.method": "dr_grpo",
    })  # fmt: skip
    found = Results(stored, write_table(tmp_path, stored))
    assert "E[max(A, 0)], here 0.18, is not" in factor_words([found])  # 0.4 * 0.6 * 3 / 4
    assert "E[max(A, 0)], is not" in factor_words([Results(make_stored(FIRST, *clip_numbers({})), tmp_path)])
    slopes = step_slopes(found, ["none"])
    assert slopes.keys() == {0, 1, 2}
    predicted, measured = entropy_changes(found.runs["none"][1])
    assert slopes[1] == pytest.approx(np.linalg.lstsq(predicted[:, None], measured, rcond=None)[0][0])
    told = wandering_words({"chain_sum": found})
    assert "over the 448 tokens has 6.10: 0 of 33 runs end above half of that, 0 below 0.25." in told


def test_the_same_tables_give_the_same_bytes_and_others_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name, FIRST, AS_CLAIMED, seeds=2)
        store(tmp_path / name, SECOND, TURNED, seeds=2)
        write_results.main(["clipping", "--tables", str(tmp_path / name), "--into", str(tmp_path / f"{name}-out")])
    one, two = ({path.name: path.read_text() for path in (tmp_path / f"{name}-out").rglob("*.*")} for name in "ab")
    assert one == two
    assert {"clipping.md", "clipping-low.svg", "clipping-products-low.svg", "clipping-predicted.svg"} <= one.keys()
    shown = set(re.findall(r"\(figures/([\w.-]+\.svg)\)", one["clipping.md"]))
    assert shown == {name for name in one if name.endswith(".svg")}
    assert "On products **contradicted**" in " ".join(one["clipping.md"].split())
    checked = ["clipping", "--check", "--tables", str(tmp_path / "a"), "--into", str(tmp_path / "a-out")]
    write_results.main(checked)
    (tmp_path / "a-out" / "figures" / "clipping-gone.svg").write_text("of an earlier version")
    (tmp_path / "a-out" / "clipping.md").write_text("edited")
    with pytest.raises(SystemExit, match=r"clipping\.md is other than its tables say: make results\n.*clipping-gone"):
        write_results.main(checked)


def test_updates_must_be_stored(tmp_path: Path) -> None:
    write_table(tmp_path, make_stored(FIRST, clip_numbers(AS_CLAIMED)[0], seeds=(0, 1)))
    with pytest.raises(SystemExit, match="no updates are stored beside it; expected those of every run"):
        write_results.main(["clipping", "--tables", str(tmp_path), "--into", str(tmp_path / "out")])


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    store(tmp_path, FIRST, AS_CLAIMED)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=r"write_results: .*file"):
        write_results.main(["clipping", "--tables", str(tmp_path), "--into", str(file)])


def test_ablations_of_one_task_are_told_apart_by_their_rates(tmp_path: Path) -> None:
    stored = make_stored(FIRST, *clip_numbers({}), seeds=(0,), steps=2)
    found = Results(stored, tmp_path)
    assert list(labels({"a": found})) == ["chain_sum"]
    assert list(labels({"a": found, "b": found})) == ["chain_sum at rate 0.0005"]


def test_verdicts_are_the_intervals() -> None:
    above, around = mean_over_seeds([1.0, 1.1, 1.2]), mean_over_seeds([-1.0, 0.0, 1.1])
    alone = SeedMean(value=1.0, half_width=None, n=1)
    assert [verdict(one, 1) for one in (above, around, alone, None)] == [
        *("reproduced", "undecided", "undecided", "not measured")
    ]
    assert verdict(above, -1) == "contradicted"
    assert overall(["reproduced", "reproduced", "not measured"]) == "reproduced"
    assert overall(["contradicted"]) == "contradicted"
    assert overall(["reproduced", "contradicted"]) == overall(["contradicted", "undecided", "reproduced"]) == "mixed"
    assert overall(["reproduced", "undecided"]) == overall(["contradicted", "undecided"]) == "undecided"
    assert overall([]) == "not measured"


def test_numbers_as_they_are_said() -> None:
    assert estimate(mean_over_seeds([1.0, 1.1, 1.2])) == "**+1.100 ± 0.248**"
    assert estimate(mean_over_seeds([-1.0, 0.0, 1.1]), 1) == "0.0 ± 2.6"
    assert estimate(SeedMean(value=-0.5, half_width=None, n=1), 1) == "−0.5 [1]"
    assert estimate(None) == signed(float("nan")) == "–"
    assert (signed(-0.0001), signed(-0.12, 1), short(0.012345)) == ("0.000", "−0.1", "0.0123")
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_prose_is_set_anew_and_the_rest_is_not() -> None:
    long = "word " * 30
    text = f"# {long}\n\n\n\n{long}\n* {long}\n* b\n\n| {long} |\n```bash\n{long}\n```\n"
    lines = wrap(text).splitlines()
    assert lines[0] == f"# {long.strip()}"
    assert lines[1:3] == ["", ("word " * 24).strip()]
    assert lines[4].startswith("* word")
    assert lines[5].startswith("  word")
    assert lines[6:10] == ["* b", "", f"| {long} |", "```bash"]
    assert lines[10] == long.rstrip()
