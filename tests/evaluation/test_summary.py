"""A benchmark's numbers by hand, their table, and the comparison of two models."""

import json
import math
from pathlib import Path

import pytest

from megarl.evaluation.answers import AnswersFile
from megarl.evaluation.summary import Answers, compare, summarise
from megarl.evaluation.table import comparison_lines, summary_line, summary_lines
from megarl.telemetry.metrics import to_values
from tests.evaluation.answers import SETTINGS, make_answer, write_answers


def test_numbers_by_hand(tmp_path: Path) -> None:
    summary = summarise(Answers.read(write_answers(tmp_path, ["xx..", "x.--", "...."], samples=4).path))
    assert (summary.problems, summary.samples) == (3, 4)
    values = {name: one.value for name, one in summary.measures.items()}
    assert list(values) == ["mean@4", *(f"pass@{k}" for k in (1, 2, 3, 4)), "maj@1", "maj@2", "maj@4"]
    assert values["mean@4"] == values["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 3)
    # 1 - C(2, 2) / C(4, 2) = 5/6 and 1 - C(3, 2) / C(4, 2) = 1/2.
    assert values["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert values["pass@4"] == pytest.approx(2 / 3)
    # Two against two, and one against one: half each.
    assert values["maj@4"] == pytest.approx((1 / 2 + 1 / 2) / 3)
    # One that is cut off gives no answer: of the second problem's six pairs 7 alone wins in two, and ties in one.
    assert values["maj@2"] == pytest.approx(((1 / 6 + 4 / 6 / 2) + (2 / 6 + 1 / 6 / 2)) / 3)
    assert (summary.length_mean, summary.truncated, summary.entropy) == (4.0, 2 / 12, 0.5)
    for one in summary.measures.values():
        assert 0 <= one.low <= one.value <= one.high <= 1


def test_metrics_have_pass_at_powers_of_two_alone(tmp_path: Path) -> None:
    metrics = to_values(summarise(Answers.read(write_answers(tmp_path, ["xx...", "x.---"], samples=5).path)).metrics())
    assert set(metrics) == {
        "eval/sums/mean@5",
        *(f"eval/sums/{kind}@{k}" for kind in ("pass", "maj") for k in (1, 2, 4, 5)),
        *(f"eval/sums/{name}" for name in ("length_mean", "truncated", "entropy")),
    }


def test_tokens_weigh_the_entropy(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path, "sums", SETTINGS)
    file.add([make_answer(0, 0, "x", tokens=1, mean_logp=-4.0), make_answer(0, 1, "x", tokens=3, mean_logp=-1.0)])
    file.add([make_answer(1, 0, "-", tokens=0, mean_logp=None), make_answer(1, 1, "-", tokens=0, mean_logp=None)])
    file.finish(problems=2)
    assert summarise(Answers.read(file.path)).entropy == pytest.approx(7 / 4)


def test_without_a_token_there_is_no_entropy_and_without_votes_no_majority(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path, "sums", SETTINGS | {"votes": False})
    file.add([make_answer(0, 0, "-", tokens=0, mean_logp=None)])
    file.finish(problems=1)
    summary = summarise(Answers.read(file.path))
    assert math.isnan(summary.entropy)
    assert list(summary.measures) == ["mean@1", "pass@1"]
    assert json.loads(json.dumps(summary.as_json(), allow_nan=False))["entropy"] is None


def test_comparison_by_hand(tmp_path: Path) -> None:
    model = Answers.read(write_answers(tmp_path / "m", ["xx", "x.", ".."], problems=[3, 4, 6]).path)
    base = Answers.read(write_answers(tmp_path / "b", ["x.", "..", ".x"], problems=[3, 4, 6], model="base").path)
    found = compare(model, base)
    assert found.differences["mean@2"].value == pytest.approx((1 / 2 + 1 / 2 - 1 / 2) / 3)
    assert found.differences["pass@2"].value == pytest.approx((0 + 1 - 1) / 3)
    assert (found.only_model, found.only_base) == (2, 1)
    assert (found.support.preserved, found.support.lost, found.support.gained) == ((3,), (6,), (4,))
    assert found.as_json()["support"]["NSCR"] == 0.0
    with pytest.raises(ValueError, match="not the same ones"):
        compare(model, Answers.read(write_answers(tmp_path / "o", ["x.", "..", ".x"], problems=[3, 4, 5]).path))


def test_tables_line_up(tmp_path: Path) -> None:
    one = Answers.read(write_answers(tmp_path, ["xx..", "x.--", "...."], samples=4).path)
    two = Answers.read(write_answers(tmp_path, ["x."] * 12, name="a-longer-name", votes=False).path)
    lines = summary_lines([summarise(one), summarise(two)])
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("  ")[0] == "benchmark"
    first, second = lines[1].split(), lines[2].split()
    assert first[:4] == ["sums", "3", "4", "25.0"]
    assert first[6:] == ["44.4", "66.7", "33.3", "4", "16.7", "0.500"]
    # No pass@4 of two samples, and no votes.
    assert second[-6:] == ["100.0", "-", "-", "4", "0.0", "0.500"]
    compared = comparison_lines([compare(one, one)])
    assert len({len(line) for line in compared}) == 1
    assert compared[1].split()[:4] == ["sums", "+0.0", "[+0.0,", "+0.0]"]
    assert summary_line(summarise(one)).startswith("sums: mean@4 25.0 [0.0, ")
