"""TOML text: what is written loads back equal."""

import math
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.config.dump import dump_config, format_key, format_value
from megarl.config.loader import load_config
from tests.config.text import write_config

_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="ascii")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_VALUES)
def test_values_round_trip(value: Any) -> None:
    parsed = tomllib.loads(f"x = {format_value(value)}")["x"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_keys_round_trip(key: str) -> None:
    assert tomllib.loads(f"{format_key(key)} = 1") == {key: 1}


def test_values_as_written() -> None:
    assert format_value(math.inf) == "inf"
    assert format_value(-math.inf) == "-inf"
    assert format_value(math.nan) == "nan"
    assert format_value(5e-7) == "5e-07"
    assert format_value(2.0) == "2.0"
    assert format_value(date(2026, 1, 2)) == "2026-01-02"
    assert format_value({"a b": [1, True]}) == '{"a b" = [1, true]}'
    with pytest.raises(TypeError, match="NoneType"):
        format_value(None)


def test_config_round_trips(tmp_path: Path) -> None:
    overrides = [
        "objective.clip.high=inf",
        "objective.advantage={method = 'grpo', eps = 1e-5}",
        "objective.weights.tis={}",
        "objective.weights.opsm={threshold = 1e-4}",
        "reward.overlong.cache_tokens=100",
        'reward.verifier={kind = "reasoning_gym", answer_pattern = "a\\\\b\\"(.*)"}',
        'data.train.options={a = 1, "b c" = [inf, {d = "x"}]}',
        'data.instruction="two\\nlines, ü, \\u007f"',
        "sft={steps = 3, batch_examples = 4}",
    ]
    config = load_config(write_config(tmp_path), overrides)
    text = dump_config(config, comments={"": ("top",), "train": ("one", "two")})
    assert load_config(write_config(tmp_path, text)) == config
    assert text.startswith('# top\nname = "small"\n')
    assert "[train]\n# one\n# two\nsteps = 100\n" in text
    assert "None" not in text
    assert "system_prompt" not in text
