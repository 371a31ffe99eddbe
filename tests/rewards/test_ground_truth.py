"""Ground truths that a verifier cannot read are found before a run, all of them, by file and row."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megarl.cli.inputs import check_answers
from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData
from megarl.config.reward import FunctionReward, Gsm8kReward, MathVerifyReward, RandomReward, RewardConfig, Verifier
from megarl.data.problems import load_problems
from megarl.data.prompts import PromptSet

MATH = MathVerifyReward(kind="math_verify")
GSM8K = Gsm8kReward(kind="gsm8k")


def check(tmp_path: Path, verifier: Verifier, answers: list[Any], **fields: Any) -> PromptSet:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "answer": answer}) + "\n" for answer in answers))
    data = DataConfig(train=FileData(source="file", path=str(file), layout="prompt_answer"))
    problems = load_problems(data.train)
    no_encoder: Any = None  # answers are read without rendering prompts
    prompts = PromptSet(problems, no_encoder, range(len(problems)), about="")
    config: Any = SimpleNamespace(reward=RewardConfig(verifier=verifier, **fields))
    return check_answers(config, prompts)


def problems(tmp_path: Path, verifier: Verifier, answers: list[Any], **fields: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, verifier, answers, **fields)
    return caught.value.problems


def test_every_bad_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    found = problems(tmp_path, MATH, ["14", "", "x^2", r"\frac{1}{2", "NaN", ""])
    assert [text.partition(":")[0].rpartition("/")[2] for text in found] == [
        f"train.jsonl line {line}" for line in (2, 4, 5, 6)
    ]
    assert all(
        text.endswith('; correct the row, or leave such rows out with reward.unreadable_answers = "drop"')
        for text in found
    )
    assert "finds no expression in the ground truth ''" in found[0]


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, GSM8K, ["1"] * 5 + ["no number"] * 40)
    assert len(found) == 11
    assert found[-1] == '40 of 45 ground truths cannot be read by verifier "gsm8k"'


def test_bad_rows_are_left_out_by_choice_and_counted(tmp_path: Path) -> None:
    kept = check(tmp_path, GSM8K, ["1", "no number", "2", ""], unreadable_answers="drop")
    assert list(kept.answers()) == [(0, "1"), (2, "2")]
    assert '2 of 4 ground truths cannot be read by verifier "gsm8k" and are left out, the first: ' in kept.about
    assert "train.jsonl line 2: " in kept.about


@pytest.mark.parametrize("choice", ["error", "drop"])
def test_where_none_can_be_read_the_column_is_another_s(choice: str, tmp_path: Path) -> None:
    (found, _) = problems(tmp_path, GSM8K, ["no number", ""], unreadable_answers=choice)
    assert found.endswith("; is the column the ground truth, and the verifier the data set's?")


def test_what_each_verifier_can_read(tmp_path: Path) -> None:
    check(
        tmp_path, MATH, ["34", "34.", "3/4", "1,000", r"\sqrt{2}", "(1,2]", "yes", "A", 0.00001, 10**16, "1e-05", "$x$"]
    )
    check(tmp_path, GSM8K, ["34", "34.", "3/4", "$1,000", "-5", 0.00001, "1e16", "#### 72", "34 apples"])
    # A function is free in what it makes of the text, a draw does not look at it.
    check(tmp_path, FunctionReward(kind="function", path="m:f"), ["", "anything"])
    check(tmp_path, RandomReward(kind="random"), ["", "anything"])


def test_a_truth_that_hangs_the_parser_is_named_and_does_not_hang_the_start(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, MATH, ["7", r"\binom{10^9}{5\cdot 10^8}", "x^2"], timeout_s=3.0)
    assert "train.jsonl line 2: math-verify takes longer than reward.timeout_s = 3 to read" in found
