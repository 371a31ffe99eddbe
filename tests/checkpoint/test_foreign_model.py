"""What a Hugging Face checkpoint has besides weights, as people have it: config, tokenizer, links, names, layouts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.checkpoint.conversion import Job
from megarl.checkpoint.convert import convert
from megarl.checkpoint.convert_processes import Outcome, Phase, run_shares
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_shards import INDEX_FILE, SINGLE_FILE
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.models.table import hf_tensors
from tests.checkpoint.test_convert import assert_refused, contents, without_strangers


def link_as_in_the_cache(directory: Path, cache: Path) -> Path:
    """What huggingface_hub makes of a download: every file of a snapshot is a link to a blob."""
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(directory.iterdir())):
        shutil.copy(file, cache / "blobs" / f"{index}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{index}"))
    return snapshot


def test_links_of_hugging_faces_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot = link_as_in_the_cache(sharded, tmp_path / "cache")
    convert(snapshot, tmp_path / "dist", check=True)
    convert(tmp_path / "dist", tmp_path / "back", shard_bytes=3000, check=True)
    before, after = without_strangers(sharded), contents(tmp_path / "back")
    assert json.loads(before.pop(INDEX_FILE)) == json.loads(after.pop(INDEX_FILE))
    assert after == before
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (INDEX_FILE, r"index\.json is a link to \.\./\.\./blobs/\d+, which is not there"),
        ("model-00001-of-*.safetensors", r"safetensors is a link to \.\./\.\./blobs/\d+, which is not there"),
        ("config.json", r"config\.json is a link to"),
        ("tokenizer.json", r"tokenizer\.json, a link to \.\./\.\./blobs/\d+, cannot be read"),
    ],
)
def test_a_link_whose_blob_is_gone_is_named(sharded: Path, tmp_path: Path, name: str, words: str) -> None:
    """Also a tokenizer's: it is not left out without a word."""
    snapshot = link_as_in_the_cache(sharded, tmp_path / "cache")
    next(iter(snapshot.glob(name))).resolve().unlink()
    assert_refused(tmp_path, str(snapshot.relative_to(tmp_path)), words)


def test_everything_that_belongs_to_the_model_comes_along(single: Path, tmp_path: Path) -> None:
    """Both ways; what is another file format's, or a training's, does not."""
    wanted = [
        *("tokenizer.model", "spiece.model", "qwen.tiktoken", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "generation_config.json"),
        *("additional_chat_templates/rag.jinja", "preprocessor_config.json", "tokenization_mine.py", "LICENSE"),
    ]
    (single / "additional_chat_templates").mkdir()
    for name in (*wanted, "optimizer.pt", "pytorch_model.bin", "README.md", "trainer_state.json", "modeling_mine.py"):
        (single / name).write_text(f'"{name}"')
    (single / "vocab.json.d").mkdir()
    convert(single, tmp_path / "dist", check=True)
    convert(tmp_path / "dist", tmp_path / "back", check=True)
    before, after = contents(single), contents(tmp_path / "back")
    assert after.keys() == {*wanted, SINGLE_FILE, "config.json", "tokenizer.json", "chat_template.jinja"}
    assert after == {name: before[name] for name in after}


def test_the_model_that_is_named_is_the_one_that_is_written(single: Path, tmp_path: Path) -> None:
    """Its config.json is what the weights are compared with, also where they have one of their own."""
    shutil.copytree(single, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((single / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    words = r"wrong shape: model\.embed_tokens\.weight: expected \(40, 16\), found \(37, 16\)"
    for to in ("hf", "dist"):
        assert_refused(tmp_path, "hf", words, to=to, model=tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 77}))
    (single / "config.json").unlink()
    convert(single, tmp_path / "out", to="hf", model=tmp_path / "other", check=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 77


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": float("nan")}, "expected a number rms_norm_eps, found nan"),
        ({"rms_norm_eps": float("inf")}, "expected a number rms_norm_eps, found inf"),
        ({"rope_theta": 10**400}, "expected a number rope_theta, found 1000"),
        ({"num_hidden_layers": 10**9}, "num_layers must be at most 10000, found 1000000000"),
        ({"num_hidden_layers": 2.0}, "expected an integer num_hidden_layers, found 2.0"),
        ({"num_hidden_layers": "2"}, "expected an integer num_hidden_layers, found '2'"),
        ({"vocab_size": 10**30}, "expected \\(1000000000000000000000000000000, 16\\), found \\(37, 16\\)"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, found 0"),
        ({"vocab_size": -37}, "vocab_size must be at least 1, found -37"),
        ({"tie_word_embeddings": "false"}, "expected true or false for tie_word_embeddings, found 'false'"),
        ({"dtype": "float8_e4m3fn"}, "expected dtype one of float32, bfloat16, float16, found 'float8_e4m3fn'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "expected unquantised weights"),
    ],
)
def test_odd_values_in_the_config(single: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = json.loads((single / "config.json").read_text())
    config.pop("rope_parameters", None)
    (single / "config.json").write_text(json.dumps(config | changes))
    assert_refused(tmp_path, "hf", words)


def test_a_config_may_have_any_text(single: Path, tmp_path: Path) -> None:
    """It is written anew where the dtype changes; half a surrogate pair has no UTF-8."""
    config = json.loads((single / "config.json").read_text()) | {"name": "\ud800", "author": "Jürgen"}
    (single / "config.json").write_text(json.dumps(config))
    convert(single, tmp_path / "out", to="hf", dtype=torch.float32)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == config | {"dtype": "float32"}


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\ufeff{}", "\x00"])
def test_a_config_that_is_none(single: Path, tmp_path: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    assert_refused(tmp_path, "hf", r"config\.json(: expected a JSON object| is not readable JSON)")


def test_a_directory_may_be_named_like_a_file(single: Path, tmp_path: Path) -> None:
    single.rename(tmp_path / "model.json")
    convert(tmp_path / "model.json", tmp_path / "dist.json", check=True)
    convert(tmp_path / "dist.json", tmp_path / "back.json", check=True)
    assert contents(tmp_path / "back.json") == without_strangers(tmp_path / "model.json")


def test_a_name_whose_bytes_are_no_text(single: Path, tmp_path: Path) -> None:
    """safetensors takes none; what has no safetensors may have one."""
    strange = os.fsdecode(b"mod\xffel")
    convert(single, tmp_path / strange, check=True)
    convert(tmp_path / strange, tmp_path / "again", to="dist", tensor=2, check=True)
    shutil.rmtree(tmp_path / strange)
    convert(tmp_path / "again", tmp_path / strange)
    assert contents(tmp_path / strange) == without_strangers(single)
    assert_refused(tmp_path, strange, "safetensors opens no path that is not UTF-8; rename the directory")


def test_more_processes_than_there_is_work_are_not_started(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_alone(job: Job, phase: Phase, *, count: int, advance: Callable[[int], None]) -> list[Outcome]:
        asked.append(count)
        return run_shares(job, phase, count=1, advance=advance)

    monkeypatch.setattr("megarl.checkpoint.convert.run_shares", run_alone)
    convert(single, tmp_path / "out", to="hf", processes=500)
    assert asked == [len(hf_tensors(read_model_shape(single)))]


def test_a_layout_for_a_target_that_has_none(single: Path, tmp_path: Path) -> None:
    """Whether `to` says so or the source's kind."""
    convert(single, tmp_path / "dist")
    for source, options in (("hf", {"to": "hf"}), ("dist", {}), ("dist", {"to": "hf"})):
        for layout in ({"tensor": 1}, {"pipeline": 2}):
            assert_refused(tmp_path, source, "a Hugging Face checkpoint has no layout", **options, **layout)


def test_both_faults_of_a_layout_are_told(single: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        convert(single, tmp_path / "out", tensor=3, pipeline=5)
    assert "tensor size 3 does not split this model" in str(caught.value)
    assert "2 layers are not a multiple of pipeline 5" in str(caught.value)


def test_a_target_in_the_source_is_refused_and_nothing_is_removed(single: Path, tmp_path: Path) -> None:
    before = contents(single)
    with pytest.raises(CheckpointError, match="lies in the source"):
        convert(single, single / "dist")
    hidden = single.rename(tmp_path / ".out.partial")
    with pytest.raises(CheckpointError, match="is being written, or its writing was cut short"):
        convert(hidden, tmp_path / "out")
    assert contents(hidden) == before
