"""A stored ablation: what is written is read again, and what is none is said to be none."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.ablation.stored import METADATA, is_stored, read_stored, updates_path, write_stored
from tests.tools.stored_tables import make_stored, write_table

NAME = "random-reward-products-small"


def of_step(setting: str, seed: int, step: int) -> dict[str, float]:
    return {"actor/entropy": 0.5 + seed + step / 8}


def of_update(setting: str, seed: int, step: int, update: int) -> dict[str, float]:
    return {"actor/lr": 0.5, "entropy/budget": -step - update / 4}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    stored = make_stored(NAME, of_step, of_update, steps=2)
    first, *others = stored.facts.settings
    first = replace(first, overrides={"objective.clip.high": math.inf}, config={"objective.clip.low": 0.2})
    stored = replace(stored, facts=replace(stored.facts, settings=(first, *others), left_out={"none-seed7": "failed"}))
    path = write_table(tmp_path, stored)
    found = read_stored(path)
    assert found.facts == stored.facts
    names = [one.name for one in stored.facts.settings]
    assert found.cells == {f"{name}-seed{seed}": (name, seed) for name in names for seed in (0, 1, 2)}
    assert found.table.to_pylist() == stored.table.to_pylist()
    assert found.updates is not None
    assert found.updates.to_pylist() == stored.updates.to_pylist()
    assert found.setting("none") == first


def test_updates_that_are_no_more_go(tmp_path: Path) -> None:
    path = write_table(tmp_path, make_stored(NAME, of_step, of_update, steps=1))
    assert updates_path(path).is_file()
    write_table(tmp_path, make_stored(NAME, of_step, steps=1))
    assert not updates_path(path).exists()
    assert read_stored(path).updates is None


def test_the_same_ablation_has_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_table(tmp_path / name, make_stored(NAME, of_step, of_update, steps=2)) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert updates_path(one).read_bytes() == updates_path(two).read_bytes()


def test_a_stored_table_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    assert is_stored(tmp_path / "x.parquet")
    assert not is_stored(tmp_path / "folder.parquet")
    assert not is_stored(tmp_path / "x.json")


def test_what_is_no_stored_table_is_said(tmp_path: Path) -> None:
    path = write_table(tmp_path, make_stored(NAME, of_step, of_update, steps=1))
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet does not exist; expected a table that tools/store_"):
        read_stored(tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match=rf"has updates alone; expected the table beside it, {NAME}\.parquet"):
        read_stored(updates_path(path))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet cannot be read as a parquet file: "):
        read_stored(tmp_path / "text.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"bare\.parquet does not say what was run; .* give its directory"):
        read_stored(tmp_path / "bare.parquet")
    pq.write_table(table.drop_columns("seed"), tmp_path / "short.parquet")
    with pytest.raises(ValueError, match=r"short\.parquet has no column 'seed'; expected cell, setting, seed"):
        read_stored(tmp_path / "short.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, "expected version 1 of a stored ablation, found 7"),
        ({"settings": [{"name": "none"}]}, "expected what an ablation is; TypeError"),
        ({"surplus": 1}, "expected what an ablation is; TypeError"),
    ],
)
def test_damaged_facts_are_said(tmp_path: Path, change: dict[str, object], message: str) -> None:
    stored = make_stored(NAME, of_step, steps=1)
    facts = stored.facts.as_json() | change
    table: pa.Table = stored.table.replace_schema_metadata({METADATA: json.dumps(facts).encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet is damaged: {message}"):
        read_stored(tmp_path / "x.parquet")


def test_a_write_that_fails_leaves_what_was(tmp_path: Path) -> None:
    stored = make_stored(NAME, of_step, steps=1)
    path = write_table(tmp_path, stored)
    before = path.read_bytes()
    bad = replace(stored, facts=replace(stored.facts, model={"parameters": math.nan}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_stored(path, bad)
    assert path.read_bytes() == before
