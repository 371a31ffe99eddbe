"""Checkpoints of a run as directories: complete or not there, found, verified, kept and removed."""

import datetime
import errno
import json
import math
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from megarl.checkpoint import manifest
from megarl.checkpoint.dist_writer import write_file
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import MANIFEST_FILE, Manifest, describe_config, finite
from megarl.checkpoint.retention import kept_steps, remove_superseded
from megarl.checkpoint.run_checkpoint import (
    PendingCheckpoint,
    RunCheckpoint,
    clear_unfinished,
    list_checkpoints,
    newest_checkpoint,
    total_bytes,
)
from megarl.config.checkpoint import CheckpointConfig
from megarl.config.run import RunConfig
from tests.checkpoint.mounts import make_read_only, tmpfs
from tests.telemetry.runs import make_config

PART = b"what a rank wrote" * 100


def make_manifest(directory: Path, *, step: int, **facts: Any) -> Manifest:
    config, digest = describe_config(make_config(directory))
    values: dict[str, Any] = {
        "config": config,
        "config_digest": digest,
        "policy_version": step,
        "updates": 2 * step,
        "optimizer_step": 2 * step,
        "progress": {"step": step},
        "layout": {"tensor": 2},
        "model": {"num_layers": 4},
        "versions": {"python": "3.11"},
        "telemetry": {},
        "metrics": {},
        "files": {},
    }
    return Manifest(step=step, **(values | facts))


def save(directory: Path, step: int, **facts: Any) -> RunCheckpoint:
    pending = PendingCheckpoint(directory, step=step)
    pending.begin()
    files = {f"__{rank}_0.distcp": write_file(pending.path / f"__{rank}_0.distcp", PART) for rank in range(2)}
    return pending.complete(make_manifest(directory, step=step, files=files, **facts))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = save(tmp_path, 12, metrics={"reward/mean": 0.5})
    assert made.path == tmp_path / "step-000012"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000012"]
    (found,) = list_checkpoints(tmp_path)
    assert (found.path, found.step, found.manifest) == (made.path, 12, made.manifest)
    found.verify()
    assert total_bytes(found.manifest.files) == 2 * len(PART)
    # The configuration's infinities are numbers again, in a file that is strict JSON.
    json.loads((made.path / MANIFEST_FILE).read_text(), parse_constant=pytest.fail)
    assert found.manifest.config["objective"]["clip"]["high"] == math.inf
    assert RunConfig.model_validate(found.manifest.config) == make_config(tmp_path)


def test_the_digest_is_of_the_configuration(tmp_path: Path) -> None:
    one, other = make_config(tmp_path), make_config(tmp_path, train={"steps": 7})
    assert describe_config(one) == describe_config(make_config(tmp_path))
    assert describe_config(one)[1] != describe_config(other)[1]
    assert finite({"a": 1, "b": math.nan, "c": math.inf}) == {"a": 1.0}


def test_one_that_is_being_written_is_not_found(tmp_path: Path) -> None:
    save(tmp_path, 1)
    pending = PendingCheckpoint(tmp_path, step=2)
    pending.begin()
    (pending.path / "__0_0.distcp").write_bytes(PART)
    make_manifest(tmp_path, step=2, files={}).write(pending.path)  # just before it is renamed
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001"]


def test_what_an_earlier_writing_left_is_no_part_of_a_new_one(tmp_path: Path) -> None:
    old = PendingCheckpoint(tmp_path, step=1)
    old.begin()
    (old.path / "__7_0.distcp").write_bytes(PART)
    assert sorted(path.name for path in save(tmp_path, 1).path.iterdir()) == [
        *("__0_0.distcp", "__1_0.distcp"),
        MANIFEST_FILE,
    ]


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 1, metrics={"a": 1.0})
    save(tmp_path, 1, metrics={"a": 2.0})
    (found,) = list_checkpoints(tmp_path)
    assert found.manifest.metrics == {"a": 2.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "__1_0.distcp: expected 1700 bytes, found none (No such file or directory)"),
        (lambda path: os.truncate(path, 1699), "__1_0.distcp: expected 1700 bytes, found 1699"),
    ],
)
def test_a_damaged_one_is_passed_over_and_named(damage: Any, said: str, tmp_path: Path, caplog: Any) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2).path / "__1_0.distcp")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"passed over: {tmp_path / 'step-000002'} is damaged: {said}. Use another checkpoint: ")
    with pytest.raises(CheckpointError, match="is damaged: __1_0"):
        RunCheckpoint.open(tmp_path / "step-000002")


def test_a_flipped_bit_is_found_by_reading(tmp_path: Path) -> None:
    made = save(tmp_path, 1)
    flip(made.path / "__0_0.distcp")
    (found,) = list_checkpoints(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        found.verify()
    assert f"{made.path} is damaged: __0_0.distcp: expected checksum " in str(caught.value)
    assert "__1_0" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "manifest.json is missing: the checkpoint was never complete, or is none of a run"),
        ("{", "manifest.json cannot be read ("),
        ("[" * 100_000, "manifest.json cannot be read ("),
        ('{"format": 1, "step": NaN}', "manifest.json cannot be read (NaN is no JSON)"),
        ("[]", "manifest.json has format [], this version of megarl reads 1"),
        ('{"format": 2}', "manifest.json has format 2, this version of megarl reads 1; use the version that wrote it"),
        ('{"format": 1}', "manifest.json: expected the keys ['config', 'config_digest', "),
    ],
)
def test_a_manifest_that_is_none(content: str | None, said: str, tmp_path: Path) -> None:
    path = save(tmp_path, 3).path / MANIFEST_FILE
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError) as caught:
        RunCheckpoint.open(path.parent)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "3", "updates": 1.5}, "step: expected int, found '3'\n  updates: expected int, found 1.5\nUse"),
        ({"step": True}, "step: expected int, found True"),
        ({"optimizer_step": -1}, "optimizer_step: expected a number from 0 on, found -1"),
        ({"config": None}, "config: expected dict, found None"),
        ({"metrics": {"loss": "low"}}, "metrics: loss: expected a number, found 'low'"),
        ({"files": ["a"]}, "files: expected dict, found ['a']"),
        ({"files": {"a": 5}}, 'files: a: expected {"bytes": number, "checksum": text}, found 5'),
        ({"files": {"a": {"bytes": "5", "checksum": ""}}}, "files: a: expected "),
        ({"files": {"../a": {"bytes": 5, "checksum": ""}}}, "files: '../a' is no file of the checkpoint"),
        ({"files": {"/etc/passwd": {"bytes": 5, "checksum": ""}}}, "'/etc/passwd' is no file of the checkpoint"),
    ],
)
def test_a_manifest_that_somebody_edited(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = save(tmp_path, 3).path / MANIFEST_FILE
    facts = {name: fact for name, fact in json.loads(path.read_text()).items() if name != "checksum"} | change
    path.write_text(manifest._dump(facts | {"checksum": manifest._digest(manifest._dump(facts))}))
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError) as caught:
        RunCheckpoint.open(path.parent)
    assert f"{path} is damaged:\n  " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"policy_version": 3', '"policy_version": 7'),
        ('"step": 3\n', '"step": 2\n'),
        ('"name": "tiny"', '"name": "tinz"'),
    ],
)
def test_a_manifest_whose_text_has_changed_is_none(was: str, becomes: str, tmp_path: Path) -> None:
    """Nothing else would tell: the run would go on from a position, a count or a history that never was."""
    path = save(tmp_path, 3).path / MANIFEST_FILE
    assert path.read_text().count(was) == 1
    path.write_text(path.read_text().replace(was, becomes))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: expected checksum [0-9a-f]{64}, found "):
        RunCheckpoint.open(path.parent)
    assert newest_checkpoint(tmp_path) is None


def test_a_configuration_with_a_date_of_its_own_is_saved(tmp_path: Path) -> None:
    """A free table may hold whatever TOML does, and tables that look like what stands for it in JSON."""
    kwargs = {
        "day": datetime.date(2026, 11, 28),
        "at": datetime.datetime(2026, 11, 28, 12, 30, tzinfo=datetime.UTC),
        "clock": datetime.time(9, 15),
        "tables": {"float": "inf", "date": "2026-11-28"},
        "numbers": [math.inf, -math.inf, 1e300],
    }
    data = {"train": {"source": "reasoning_gym", "task": "chain_sum"}, "chat_template_kwargs": kwargs}
    config = make_config(tmp_path, data=data)
    made = save(tmp_path, 1, config=describe_config(config)[0])
    assert RunConfig.model_validate(RunCheckpoint.open(made.path).manifest.config) == config


def test_a_disk_without_room_is_told_before_it_is_full(tmp_path: Path) -> None:
    pending = PendingCheckpoint(tmp_path, step=1)
    free = shutil.disk_usage(tmp_path).free
    pending.begin(num_bytes=free // 2)
    with pytest.raises(CheckpointError, match=r"step-000001: .* GB are to be written and .* GB are free; free some"):
        pending.begin(num_bytes=2 * free)


def test_links_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    directory = tmp_path / "checkpoints"
    for step in (1, 2):
        save(elsewhere, step)
        save(directory, step)
        shutil.rmtree(directory / f"step-00000{step}")
        (directory / f"step-00000{step}").symlink_to(elsewhere / f"step-00000{step}")
    (directory / ".step-000003.partial").symlink_to(elsewhere)
    save(directory, 3)
    assert [path.name for path in remove_superseded(directory, CheckpointConfig(keep_last=2))] == ["step-000001"]
    assert sorted(path.name for path in directory.iterdir()) == ["step-000002", "step-000003"]
    save(directory, 2)
    assert sorted(path.name for path in directory.iterdir()) == ["step-000002", "step-000003"]
    assert not (directory / "step-000002").is_symlink()
    assert [checkpoint.step for checkpoint in list_checkpoints(elsewhere)] == [1, 2]


def test_a_file_system_that_flushes_no_directories_takes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, sync = [], os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flushed.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path, 1).verify()
    assert len(flushed) >= 3  # two parts and the manifest

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 2)


def test_a_directory_of_another_step_is_passed_over(tmp_path: Path, caplog: Any) -> None:
    save(tmp_path, 3).path.rename(tmp_path / "step-000009")
    assert list_checkpoints(tmp_path) == []
    assert "is of step 3; was the directory renamed?" in caplog.messages[0]


def test_no_directory_has_no_checkpoints(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    clear_unfinished(tmp_path / "none")


def test_a_file_that_the_manifest_has_and_the_disk_has_not_is_no_checkpoint(tmp_path: Path) -> None:
    pending = PendingCheckpoint(tmp_path, step=1)
    pending.begin()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: expected 5 bytes, found none"):
        pending.complete(make_manifest(tmp_path, step=1, files={"__0_0.distcp": {"bytes": 5, "checksum": ""}}))
    pending.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_takes_no_writes(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        save(disk, 1)
        make_read_only(disk)
        with pytest.raises(CheckpointError, match=r"\.step-000002\.partial cannot be made: Read-only file system"):
            PendingCheckpoint(disk, step=2).begin()
        newest = newest_checkpoint(disk)
        assert newest is not None
        newest.verify()


def test_a_disk_that_is_full_at_the_manifest(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="64k") as disk:
        save(disk, 1)
        pending = PendingCheckpoint(disk, step=2)
        pending.begin()
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(CheckpointError, match="cannot be completed: No space left on device"):
            pending.complete(make_manifest(disk, step=2))
        pending.discard()
        assert [checkpoint.step for checkpoint in list_checkpoints(disk)] == [1]


def kept(directory: Path, **config: Any) -> list[int]:
    return sorted(kept_steps(list_checkpoints(directory), CheckpointConfig(**config)))


def test_what_is_kept(tmp_path: Path) -> None:
    for step, reward in ((2, 0.1), (4, 0.9), (6, None), (8, 0.9), (10, 0.3), (12, 0.2)):
        save(tmp_path, step, metrics={} if reward is None else {"reward/mean": reward})
    assert kept(tmp_path) == [10, 12]
    assert kept(tmp_path, keep_last=1) == [12]
    assert kept(tmp_path, keep_last=1, keep_every_steps=6) == [6, 12]
    # Of two that are equally good the later one.
    assert kept(tmp_path, keep_last=1, keep_best="reward/mean") == [8, 12]
    assert kept(tmp_path, keep_last=1, keep_best="reward/mean", keep_best_by="min") == [2, 12]
    assert kept(tmp_path, keep_last=1, keep_best="reward/none") == [12]
    removed = remove_superseded(tmp_path, CheckpointConfig(keep_last=1, keep_best="reward/mean", keep_every_steps=5))
    assert [path.name for path in removed] == ["step-000002", "step-000004", "step-000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000008", "step-000010", "step-000012"]
