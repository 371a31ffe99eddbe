"""Parquet round trip of rollouts."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.telemetry.rollouts import SCHEMA, RolloutRow, read_rollouts, write_rollouts


def make_row(**changes: object) -> RolloutRow:
    fields = {
        "step": 3,
        "prompt_index": 2**40,
        "sample_index": 1,
        "policy_version": 2,
        "prompt_text": "What is 2 + 2? ≥ ü\n",
        "response_text": "4",
        "prompt_tokens": (1, 151_935),
        "response_tokens": (5, 6, 7),
        "behavior_logp": (-0.5, -1.25, 0.0),  # exact in float32
        "old_logp": (-0.5, -1.5, 0.0),
        "ref_logp": None,
        "reward": 0.1 + 0.2,
        "verifier_reward": 1.0,
        "overlong": -0.7,
        "failure": None,
        "advantage": -1 / 3,
        "stop_reason": "length",
    }
    return RolloutRow(**(fields | changes))  # type: ignore[arg-type]


def test_rows_come_back_equal(tmp_path: Path) -> None:
    rows = [
        make_row(),
        make_row(sample_index=2, ref_logp=(-1.0, -2.0, -4.0), failure="timeout", stop_reason="stop"),
        make_row(sample_index=3, response_tokens=(), behavior_logp=(), old_logp=(), ref_logp=()),
    ]
    path = tmp_path / "step-000003.parquet"
    write_rollouts(path, rows)
    assert read_rollouts(path) == rows
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_log_probs_are_float32(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.parquet"
    write_rollouts(path, [make_row(old_logp=(-0.1, -0.2, -0.3))])
    assert read_rollouts(path)[0].old_logp == tuple(float(np.float32(x)) for x in (-0.1, -0.2, -0.3))
    schema = pq.read_schema(path)
    assert schema.field("response_tokens").type.value_type == pa.int32()
    assert schema.field("behavior_logp").type.value_type == pa.float32()
    assert [field.name for field in schema if field.nullable] == ["ref_logp", "failure"]


def test_record_and_schema_list_the_same_columns() -> None:
    assert [field.name for field in dataclasses.fields(RolloutRow)] == SCHEMA.names


def test_an_empty_step_is_a_file_too(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "a.parquet", [])
    assert read_rollouts(tmp_path / "a.parquet") == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rollouts(path, [make_row()])
    with pytest.raises(pa.ArrowInvalid):
        write_rollouts(path, [make_row(step=2**40)])  # outside int32
    assert read_rollouts(path) == [make_row()]
    assert len(list(tmp_path.iterdir())) == 1


def test_wrong_lengths_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample 1: 3 response tokens but 2 entries in old_logp"):
        make_row(old_logp=(0.0, 0.0))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"has columns \['x'\], expected"):
        read_rollouts(tmp_path / "x.parquet")
