"""docs/results/theory-in-practice.md from stored tables: other numbers make other sentences."""

from pathlib import Path

import numpy as np
import pytest
from results.documents import write_document

from megarl.theory.practice.numbers import ENDING, Practice, RunNumbers, write_practice
from megarl.theory.practice.tokens import SUMS
from tests.tools.stored_tables import make_stored, noise, write_table

SIGNS, OPTIMIZERS, KL = "random-reward-small", "prediction-small", "kl-small"
NAME = "theory-in-practice"


def store(
    folder: Path,
    name: str,
    *,
    negative: float = 0.25,
    around: float = -0.1,
    correlation: float = 0.5,
    coins: dict[str, float] | None = None,
) -> None:
    """Of every setting three seeds, with these numbers and a little noise. coins: those of the settings whose bounds do
    not act; without, nothing is said of what acts."""
    stored = make_stored(name, lambda _, seed, step: {"actor/entropy": 1.0 + 0.01 * seed * step}, steps=2)
    write_table(folder, stored)
    runs = []
    for cell, (setting, seed) in stored.cells.items():
        run = RunNumbers(setting=setting, cell=cell, seed=seed)
        small = 0.01 * noise(setting, seed)
        run.put("run", "", {"steps": 2, "files": 2, "traced_tokens": 100, "lr": 5e-4, "eps": 1e-8, "beta1": 0.9})
        for side in ("low", "high"):
            run.put("sign", side, {"updates": 20, "negative": negative, "change_difference": around + small})
            if coins is not None:
                is_coin = setting.endswith("-coin")
                run.put("sign", side, {"acted": 0 if is_coin else 15} | (coins if is_coin else {}))
            sums = dict.fromkeys(SUMS, 1.0) | {"tokens": 100, "inside": 10, "negative": 10 * negative}
            for kind in ("all|0", "surprisal|1"):
                run.put("tokens", f"{side}|{kind}", sums)
        for grain in ("one update", "since the step began", "one step", "own state"):
            found = {"n": 10, "sign": 0.6, "correlation": correlation + small, "slope": 2.0, "error": 0.9}
            for group in ("all", "1"):
                run.put("prediction", f"{grain}|{group}|plain", found)
        start = 1.0 if setting != "kl0.5" else 2.0
        for step in (1, 2, 3):
            entropy = start - 0.2 * step
            run.put("series", str(step), {"actor/old_entropy": entropy, "reward/mean": 0.1 * step + small})
            run.put("series", str(step), {"entropy_after": entropy - 0.2, "eval/held_out/mean@8": 0.1 * step + small})
        runs.append(run)
    practice = Practice(name=name, runs=tuple(runs), controls={})
    write_practice(practice, folder / f"{name}{ENDING}")


def test_what_the_numbers_decide_is_what_is_said(tmp_path: Path) -> None:
    for name in (SIGNS, OPTIMIZERS, KL):
        store(tmp_path, name)
    text = " ".join(write_document(NAME, tmp_path).text.split())
    assert (
        "E[Q] − E[Q|X] was below 0 in 165 of 660 updates (25.0 ± 0.0 % of a seed's), which it never is in the paper"
        in text
    )
    assert "Around them the entropy fell against what it did around others: **−" in text
    assert "they are the majority where" not in text  # a quarter everywhere
    assert "one update, plain: the prediction goes with it in sgd-0.01, sgd-0.05" in text
    assert "There is no entropy that all settings come to." in text
    assert "has not been run" not in text


def test_runs_that_do_not_clip_are_not_in_what_is_said_of_clipping(tmp_path: Path) -> None:
    """Where a coin drops tokens the entropy falls around negative updates; where the bounds act it does nothing."""
    store(tmp_path, SIGNS, around=0.0, coins={"negative": 0.5, "change_difference": -0.4})
    text = " ".join(write_document(NAME, tmp_path).text.split())
    assert "E[Q] − E[Q|X] was below 0 in 90 of 360 updates (25.0 ± 0.0 % of a seed's)" in text  # 6 of 11 settings
    assert "changed around them no differently than around others" in text
    assert "in the bounds' place it was below 0 in 50.0 ± 0.0 %; around them **−400.0 ± 0.0** millinats." in text
    assert "| X | all that clip | 360 |" in text
    assert "Were there no difference in any, one or more of 10 would be bold in 40 % of cases." in text


def test_other_numbers_make_other_sentences(tmp_path: Path) -> None:
    store(tmp_path, SIGNS, negative=0.0, around=0.0, correlation=0.0)
    store(tmp_path, OPTIMIZERS, correlation=-0.5)
    written = write_document(NAME, tmp_path)
    text = " ".join(written.text.split())
    assert "was below 0 in 0 of 660 updates (0.0 ± 0.0 % of a seed's), as in the paper's figure 1" in text
    assert "changed around them no differently than around others" in text
    assert "one update, plain: the prediction goes against it in sgd-0.01" in text
    assert "The ablation, kl-small, has not been run." in text
    assert all(f"figures/{name}" in written.text for name in written.figures)


def test_a_majority_is_named(tmp_path: Path) -> None:
    store(tmp_path, SIGNS, negative=0.75)
    text = " ".join(write_document(NAME, tmp_path).text.split())
    assert "they are the majority where −log p is 0.1 to 0.5 nats" in text
    assert "The optimizers' ablation, prediction-small, has not been run." in text


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    store(tmp_path, SIGNS)
    first, second = (write_document(NAME, tmp_path) for _ in range(2))
    assert first == second
    assert np.all([len(line) <= 120 or line.startswith(("|", "![")) for line in first.text.splitlines()])


def test_a_table_without_its_practice_says_how_to_make_it(tmp_path: Path) -> None:
    store(tmp_path, SIGNS)
    (tmp_path / f"{SIGNS}{ENDING}").unlink()
    with pytest.raises(ValueError, match=r"python tools/store_results\.py runs/random-reward-small-ablation"):
        write_document(NAME, tmp_path)
