"""Parquet round trip of rollouts."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.records import TokenTrace
from megarl.rules import Rule
from megarl.telemetry import rollouts
from megarl.telemetry.rollouts import SCHEMA, RolloutRow, read_rollouts, write_rollouts
from tests.telemetry.rollout_files import write_rows


def make_row(**changes: object) -> RolloutRow:
    fields = {
        "step": 3,
        "prompt_index": 2**40,
        "sample_index": 1,
        "sample_id": 9,
        "policy_version": 2,
        "prompt_text": "What is 2 + 2? ≥ ü\n",
        "response_text": "4",
        "prompt_tokens": (1, 151_935),
        "response_tokens": (5, 6, 7),
        "behavior_logp": (-0.5, -1.25, 0.0),  # exact in float32
        "token_text": None,
        "old_logp": (-0.5, -1.5, 0.0),
        "old_entropy": (0.25, 2.0, 0.0),
        "ref_logp": None,
        "trace": None,
        "reward": 0.1 + 0.2,
        "verifier_reward": 1.0,
        "overlong": -0.7,
        "bonus": 0.0,
        "failure": None,
        "advantage": -1 / 3,
        "stop_reason": "length",
    }
    return RolloutRow(**(fields | changes))  # type: ignore[arg-type]


def make_trace(**changes: object) -> TokenTrace:
    fields = {
        "sample_id": 9,
        "logp": (-0.5, -1.75, -0.125),
        "entropy": (0.25, 2.5, 0.0),
        "expected_q": (0.125, 0.25, 0.0),
        "ratio": (1.0, 0.75, 1.5),
        "low": (0.0, 0.75, 0.75),
        "high": (math.inf, 1.25, 1.25),
        "gate": (0.5, 0.0, -1.5),
        "weight": (1.0, 0.0, 2.0),
        "coefficient": (0.25, 0.0, -1.5),
        "advantage": (0.5, -0.25, -1.0),
        "rule": [int(flags) for flags in (Rule(0), Rule.CLIP_LOW | Rule.TIS, Rule.CLIP_HIGH)],
    }
    return TokenTrace(**(fields | changes))  # type: ignore[arg-type]


def test_rows_come_back_equal(tmp_path: Path) -> None:
    rows = [
        make_row(),
        make_row(sample_id=2, ref_logp=(-1.0, -2.0, -4.0), failure="timeout", stop_reason="stop", bonus=0.25),
        make_row(sample_id=3, response_tokens=(), behavior_logp=(), old_logp=(), old_entropy=(), ref_logp=()),
        make_row(trace=make_trace(), token_text=("4", "\n", "é")),
    ]
    path = tmp_path / "step-000003.parquet"
    write_rows(path, rows)
    assert read_rollouts(path) == rows
    assert read_rollouts(path, sample_ids={9, 3}) == [rows[0], *rows[2:]]
    assert read_rollouts(path, sample_ids=[]) == []
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_rows_of_a_long_step_are_found_in_every_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "step-000003.parquet"
    write_rows(path, (make_row(sample_id=number) for number in range(200)))
    assert [row.sample_id for row in read_rollouts(path)] == list(range(200))
    assert [row.sample_id for row in read_rollouts(path, sample_ids=(199, 5, 64))] == [5, 64, 199]


def test_log_probs_are_float32(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.parquet"
    write_rows(path, [make_row(old_logp=(-0.1, -0.2, -0.3))])
    assert read_rollouts(path)[0].old_logp.tolist() == [float(np.float32(x)) for x in (-0.1, -0.2, -0.3)]
    schema = pq.read_schema(path)
    assert schema.field("response_tokens").type.value_type == pa.int32()
    assert schema.field("behavior_logp").type.value_type == pa.float32()
    assert schema.field("gate").type.value_type == pa.float32()
    assert schema.field("rule").type.value_type == pa.dictionary(pa.int32(), pa.string())
    numbers = ["logp", "entropy", "expected_q", "ratio", "low", "high", "gate", "weight", "coefficient"]
    traced = [*numbers, "token_advantage", "rule"]
    assert [field.name for field in schema if field.nullable] == ["token_text", "ref_logp", *traced, "failure"]


def test_record_and_schema_list_the_same_columns() -> None:
    own = [field.name for field in dataclasses.fields(RolloutRow)]
    traced = ["token_advantage" if f.name == "advantage" else f.name for f in dataclasses.fields(TokenTrace)[1:]]
    at = own.index("trace")
    assert own[:at] + traced + own[at + 1 :] == SCHEMA.names


def test_the_module_documents_every_column() -> None:
    assert all(re.search(rf"\b{name}\b", rollouts.__doc__ or "") for name in SCHEMA.names)


def test_an_empty_step_is_a_file_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [])
    assert read_rollouts(tmp_path / "a.parquet") == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, [make_row()])
    with pytest.raises(pa.ArrowInvalid):
        write_rows(path, [make_row(step=2**40)])  # outside int32
    assert read_rollouts(path) == [make_row()]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_step_of_several_parts_comes_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is put together while the one before it is written."""
    monkeypatch.setattr(rollouts, "_TOKENS_OF_A_GROUP", 6)
    rows = [make_row(sample_id=number, advantage=float(number)) for number in range(20)]
    rows[7] = make_row(sample_id=9, trace=make_trace(), token_text=("4", "\n", "é"))
    write_rows(tmp_path / "a.parquet", rows)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 10
    assert read_rollouts(tmp_path / "a.parquet") == rows


def test_columns_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, [make_row()])
    names = [field.name for field in dataclasses.fields(RolloutRow)]
    columns = {name: [getattr(row, name) for row in (make_row(), make_row(sample_id=2))] for name in names}
    short = np.zeros(2, dtype=np.float32)
    with pytest.raises(ValueError, match="sample 2: 3 response tokens but 2 entries in old_entropy"):
        write_rollouts(path, columns | {"old_entropy": [columns["old_entropy"][0], short]})
    with pytest.raises(ValueError, match="sample 9: 3 response tokens but 1 entries in token_text"):
        write_rollouts(path, columns | {"token_text": [("a",), None]})
    with pytest.raises(ValueError, match=r"'reward': 1.*expected equally many of each of \['step'"):
        write_rollouts(path, columns | {"reward": [1.0]})
    with pytest.raises(ValueError, match="'rewards': 2"):
        write_rollouts(path, columns | {"rewards": [1.0, 1.0]})
    assert read_rollouts(path) == [make_row()]
    assert len(list(tmp_path.iterdir())) == 1


def test_wrong_lengths_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample 1: 3 response tokens but 2 entries in old_logp"):
        make_row(old_logp=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"trace of sample 9: 3 response tokens but 1 entries in gate"):
        make_trace(gate=(0.0,))
    two = dict.fromkeys(("response_tokens", "behavior_logp", "old_logp", "old_entropy"), (0, 0))
    with pytest.raises(ValueError, match=r"sample 1, trace: 2 response tokens but 3 entries in logp"):
        make_row(trace=make_trace(), **two)
    with pytest.raises(ValueError, match=r"sample 9 of the step, its trace is of sample 8"):
        make_row(trace=make_trace(sample_id=8))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"has columns \['x'\], expected"):
        read_rollouts(tmp_path / "x.parquet")
