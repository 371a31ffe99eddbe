"""Numbers as text: plain digits, exactly."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.data.numbers import exact_text
from megarl.data.problems import load_problems


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (34, "34"),
        (-5, "-5"),
        (0.1, "0.1"),
        (0.00001, "0.00001"),
        (1e-7, "0.0000001"),
        (1.5e-5, "0.000015"),
        (1e16, "10000000000000000"),
        (1.5e20, "150000000000000000000"),
        (10**30, "1" + "0" * 30),
        (3.0, "3.0"),
        (-2.5, "-2.5"),
        (Decimal("0.10"), "0.10"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_numbers_are_written_out(value, text) -> None:
    assert exact_text(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), True])
def test_what_is_no_number_is_refused(value) -> None:
    with pytest.raises(ValueError, match="expected a finite number, found"):
        exact_text(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_gives_the_number_back(value: float) -> None:
    text = exact_text(value)
    assert float(text) == value
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    ("number", "text"), [("0.00001", "0.00001"), ("1e16", "10000000000000000"), ("34", "34"), ("0.5", "0.5")]
)
def test_a_ground_truth_and_a_supervised_target_are_written_out(tmp_path, number, text) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f'{{"prompt": "p", "answer": {number}}}\n')
    (problem,) = load_problems(FileData(source="file", path=str(file), layout="prompt_answer")).take([0])
    assert (problem.answer, problem.solution) == (text, text)


def test_a_ground_truth_that_is_no_number_names_its_row(tmp_path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "p", "answer": 1}\n{"prompt": "p", "answer": NaN}\n')
    with pytest.raises(ConfigError, match=r"train\.jsonl line 2.*nan"):
        load_problems(FileData(source="file", path=str(file), layout="prompt_answer")).take([0, 1])
