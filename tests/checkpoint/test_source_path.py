"""What a path means to `convert`, and what is said of one that means no checkpoint."""

import dataclasses
from pathlib import Path

import pytest

from megarl.checkpoint.dist_format import METADATA_FILE
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import MANIFEST_FILE, Manifest
from megarl.checkpoint.new_directory import partial_of
from megarl.checkpoint.source_path import check_apart, find_checkpoint
from tests.checkpoint.test_run_checkpoint import flip, save

PARTS = [f"__{rank}_0.distcp" for rank in range(2)]


def save_dist(directory: Path, step: int) -> Path:
    """A run's complete checkpoint, as far as names and sizes say."""
    made = save(directory, step)
    (made.path / METADATA_FILE).touch()
    return made.path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """With three checkpoints, the last of which never got its manifest, and others' names."""
    directory = tmp_path / "run" / "checkpoints"
    for step in (5, 20, 100):
        save_dist(directory, step)
    (directory / "step-000100" / MANIFEST_FILE).unlink()
    (directory / ".step-000200.partial").mkdir()
    for name in (".step-000200.partial", "step-000020-before-lunch", "step-999999"):
        (directory / name).mkdir(exist_ok=True)
        (directory / name / METADATA_FILE).touch()
    (tmp_path / "run" / "state.json").write_text("{}")
    return tmp_path / "run"


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(path)
    for word in words:
        assert word in str(caught.value)


def test_a_run_means_its_newest_complete_checkpoint(run: Path, tmp_path: Path) -> None:
    """Not one without a manifest, not one that is being written, not a copy under a longer name."""
    (tmp_path / "latest").symlink_to(run)
    for path in (run, run / "latest", run / "checkpoints", tmp_path / "latest"):
        found = find_checkpoint(path)
        assert (found.path.resolve(), found.kind) == (run / "checkpoints" / "step-000020", "dist")
        assert found.of_run is not None
        assert found.of_run.step == 20


def test_a_checkpoint_that_is_named_must_be_complete(run: Path) -> None:
    checkpoints = run / "checkpoints"
    assert find_checkpoint(checkpoints / "step-000005").of_run is not None
    refuse(checkpoints / "step-000100", f"step-000100/{MANIFEST_FILE} is missing: the checkpoint was never complete")
    refuse(checkpoints / ".step-000200.partial", "is being written, or its writing was cut short")
    (checkpoints / "step-000005" / PARTS[0]).unlink()
    refuse(checkpoints / "step-000005", f"step-000005 is damaged: {PARTS[0]}: expected 1700 bytes, found none")


def test_a_small_file_that_changed_is_found_where_it_is(tmp_path: Path) -> None:
    """Of tensors every chunk has its own checksum, which is compared when it is read."""
    path = save_dist(tmp_path, 5)
    (path / "tokenizer.json").write_bytes((path / PARTS[0]).read_bytes())
    manifest = Manifest.read(path)
    files = manifest.files | {"tokenizer.json": manifest.files[PARTS[0]]}
    dataclasses.replace(manifest, files=files).write(path)
    flip(path / PARTS[1])
    find_checkpoint(path)
    flip(path / "tokenizer.json")
    refuse(path, "step-000005 is damaged: tokenizer.json: expected checksum ")


def test_what_megatron_saves_into_means_its_last_iteration(tmp_path: Path) -> None:
    root = tmp_path / "save"
    for name in ("iter_0000005", "iter_0000012", "release"):
        (root / name).mkdir(parents=True)
        (root / name / METADATA_FILE).touch()
    (root / "config.json").write_text("{}")
    for word, name in (("12\n", "iter_0000012"), ("5", "iter_0000005"), ("release", "release")):
        (root / "latest_checkpointed_iteration.txt").write_text(word)
        found = find_checkpoint(root)
        assert (found.path, found.kind, found.of_run) == (root / name, "dist", None)
    (root / "latest_checkpointed_iteration.txt").write_text("99")
    refuse(root, "says 99, and", "iter_0000099 is no complete torch.distributed.checkpoint")
    (root / "latest_checkpointed_iteration.txt").write_text("../../etc")
    refuse(root, "latest_checkpointed_iteration.txt: expected a number or \"release\", found '../../etc'")


def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    refuse(tmp_path / "none", f"found nothing at {tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty is no checkpoint: it has no config.json and model.safetensors (Hugging Face), no")
    (tmp_path / "model.safetensors").touch()
    refuse(tmp_path / "model.safetensors", "expected a checkpoint's directory, found a file at")
    (tmp_path / "link").symlink_to("gone")
    refuse(tmp_path / "link", "found a link to gone, which is not there")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.json").touch()  # of a time or a verb that saves nothing
    refuse(tmp_path / "run", "is a run without a complete checkpoint", f"are in {tmp_path / 'run' / 'hf'}")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / PARTS[0]).touch()
    refuse(tmp_path / "dist", "has a torch.distributed.checkpoint's files and no .metadata: it was never complete")
    snapshot = tmp_path / "models--Qwen--Qwen2.5-7B" / "snapshots" / "a09a35"
    snapshot.mkdir(parents=True)
    refuse(tmp_path / "models--Qwen--Qwen2.5-7B", "is a model in Hugging Face's cache; name", str(snapshot))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").touch()
    refuse(tmp_path / "models", f"name the one that is meant in it, e.g. {tmp_path / 'models' / 'mine'}")


def test_the_source_stays_as_it_is(tmp_path: Path) -> None:
    """Also one that lies where a target is written before it gets its name: it would be removed."""
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    for target, words in (
        (source, "is the source itself"),
        (tmp_path / "link", "is the source itself"),
        (source / "dist", "lies in the source"),
        (tmp_path / "link" / "a" / "b", "lies in the source"),
    ):
        with pytest.raises(CheckpointError, match=words):
            check_apart(source, target)
    hidden = partial_of(tmp_path / "out")
    for place in (hidden, hidden / "model"):
        with pytest.raises(CheckpointError, match="is written in the place where"):
            check_apart(place, tmp_path / "out")
    check_apart(source, tmp_path / "source-2")
    check_apart(tmp_path / "run" / "checkpoints" / "step-000001", tmp_path / "run" / "converted")
