"""Hugging Face checkpoints as people have them: edited by hand, linked, sharded wrongly, and damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megarl.checkpoint.conversion import Job
from megarl.checkpoint.convert import convert
from megarl.checkpoint.convert_processes import Outcome, Phase, run_shares
from megarl.checkpoint.errors import CheckpointError, list_by_kind
from megarl.checkpoint.hf import OPEN_FILES, open_hf_checkpoint
from megarl.checkpoint.hf_shards import INDEX_FILE, SINGLE_FILE
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.models.table import hf_tensors
from tests.checkpoint.test_convert import assert_refused, contents, replace_weights, without_strangers
from tests.checkpoint.test_hf_checkpoint import write_source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """single, sharded and tied, which tests copy."""
    directory = tmp_path_factory.mktemp("made")
    write_source(directory / "single")
    write_source(directory / "sharded", max_shard_size="3KB")
    write_source(directory / "tied", tied=True)
    return directory


@pytest.fixture
def single(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "single", tmp_path / "hf"))


@pytest.fixture
def sharded(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "sharded", tmp_path / "hf"))


@pytest.fixture
def tied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "tied", tmp_path / "hf"))


def change_index(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((directory / INDEX_FILE).read_text())
    change(content["weight_map"])
    (directory / INDEX_FILE).write_text(json.dumps(content))


def test_an_index_and_its_files_must_fit_together(sharded: Path, tmp_path: Path) -> None:
    """All of what is wrong is said at once."""
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    index = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    first, second = next(name for name, file in index.items() if file == files[0]), files[1]
    tensors = load_file(sharded / second)
    save_file(tensors | {first: torch.zeros(2), "stranger": torch.zeros(2)}, sharded / second)
    change_index(sharded, lambda located: located.update({"gone": second, "lost": "model-99.safetensors"}))
    (sharded / files[2]).unlink()
    for words in (
        rf"held twice: {first} \(in {second}, listed in {files[0]}\)",
        rf"held and not listed: stranger \(in {second}\)",
        rf"listed and not held: gone \(in {second}\)",
        rf"file: .*{files[2]} is not there",
        r"file: .*model-99\.safetensors is not there",
    ):
        assert_refused(tmp_path, "hf", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', r"a \(in '\.\./x\.safetensors'\)"),
        ('{"weight_map": {"a": "/etc/passwd"}}', r"a \(in '/etc/passwd'\)"),
        ('{"weight_map": {"a": null, "b": ""}}', r"a \(in None\)\n  b \(in ''\)"),
        ('{"weight_map": {}}', "expected tensors in files beside it, found none"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "it names a twice"),
        ('{"weight_map": [["a", "x"]]}', "is not a safetensors index"),
        ('{"weight_map": ' + "[" * 100_000, "is not a safetensors index"),
        ("\xff", "is not a safetensors index"),
    ],
)
def test_an_index_that_is_none(sharded: Path, tmp_path: Path, text: str, words: str) -> None:
    (sharded / INDEX_FILE).write_bytes(text.encode("latin-1"))
    assert_refused(tmp_path, "hf", words)


def test_weights_that_are_there_twice(sharded: Path, made: Path, tmp_path: Path) -> None:
    """transformers takes the one, vLLM the other."""
    shutil.copy(made / "single" / SINGLE_FILE, sharded)
    assert_refused(tmp_path, "hf", r"has weights twice, in model\.safetensors, which transformers loads")
    for file in sharded.glob("model-*"):
        file.unlink()
    names = load_file(sharded / SINGLE_FILE)
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE_FILE)}))
    convert(sharded, tmp_path / "dist")


def write_raw(file: Path, header: object, data: bytes = b"\0" * 64) -> None:
    """A safetensors file whose header nobody has checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 32, [8]), "b": entry(16, 48, [8])},  # overlapping
        {"a": entry(0, 32, [8]), "b": entry(48, 64, [4])},  # a hole
        {"a": entry(-32, 0, [8])},
        {"a": entry(32, 0, [8])},
        {"a": entry(0, 64, [8])},
        {"a": entry(0, 96, [24])},
        {"a": entry(0, 1 << 70, [8])},
        {"a": entry(0, 0, [1 << 40, 1 << 40])},
        {"a": entry(0, 64, [-16])},
        {"a": entry(0, 64, [16], "F33")},
        {"a": {"dtype": "F32", "shape": [16]}},
        {"a": [1, 2]},
        [1, 2],
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a": ' + json.dumps(entry(0, 64, [16])).encode(),
    ],
)
def test_headers_that_cannot_be(single: Path, tmp_path: Path, header: object) -> None:
    write_raw(single / SINGLE_FILE, header)
    assert_refused(tmp_path, "hf", r"model\.safetensors \(\d+ bytes\) is truncated or corrupt: .*again")


def test_a_length_of_the_header_that_cannot_be(single: Path, tmp_path: Path) -> None:
    """What the file has is not read into memory to look for a header in it."""
    for length in (1 << 63, 200_000_000):
        with (single / SINGLE_FILE).open("wb") as stream:
            stream.write(length.to_bytes(8, "little"))
            stream.truncate(300_000_000)  # of holes
        assert_refused(tmp_path, "hf", r"model\.safetensors \(300000000 bytes\) is truncated or corrupt")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.bool, "BOOL"),
    ],
)
def test_quantised_weights_are_no_weights(single: Path, tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    """Also with --dtype: their scales are missing."""
    key = "model.layers.0.mlp.up_proj.weight"
    replace_weights(single, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    words = rf"wrong dtype: {key}: expected one of F64, F32, BF16, F16, found {name}"
    assert_refused(tmp_path, "hf", words)
    assert_refused(tmp_path, "hf", words, dtype=torch.bfloat16)


def test_half_precision_stays_what_it_is(single: Path, tmp_path: Path) -> None:
    tensors = load_file(single / SINGLE_FILE)
    for dtype, said in ((torch.float16, "float16"), (torch.float32, "float32")):
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, single / SINGLE_FILE, {"format": "pt"})
        convert(single, tmp_path / f"{said}-dist", check=True)
        convert(tmp_path / f"{said}-dist", tmp_path / said, check=True)
        assert (tmp_path / said / SINGLE_FILE).read_bytes() == (single / SINGLE_FILE).read_bytes()
        assert json.loads((tmp_path / said / "config.json").read_text())["dtype"] == said


def test_numbers_that_the_dtype_does_not_have(single: Path, tmp_path: Path) -> None:
    """bfloat16 ends a little before float32, which ends long before float64; what is infinite already stays so."""
    for value, dtype, target in ((3.4e38, torch.float32, torch.bfloat16), (1e300, torch.float64, torch.float32)):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(single / SINGLE_FILE).items()}
        tensors["model.norm.weight"].fill_(value)
        save_file(tensors, single / SINGLE_FILE)
        name = str(target).removeprefix("torch.")
        assert_refused(tmp_path, "hf", rf"norm\.weight has numbers that {name} does not", dtype=target, to="hf")
    tensors = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    tensors["model.norm.weight"].fill_(torch.inf)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, single / SINGLE_FILE)
    convert(single, tmp_path / "out", dtype=torch.bfloat16, to="hf", check=True)


def test_an_output_layer_beside_tied_embeddings(tied: Path, tmp_path: Path) -> None:
    """Equal in whatever dtype it is surplus and left out; otherwise it says what it is, of whatever shape."""
    key, tensors = "lm_head.weight", load_file(tied / SINGLE_FILE)
    embedding = tensors["model.embed_tokens.weight"]
    original = (tied / SINGLE_FILE).read_bytes()
    for same in (embedding.clone(), embedding.float()):
        save_file(tensors | {key: same}, tied / SINGLE_FILE)
        convert(tied, tmp_path / f"out-{same.dtype}", to="hf", check=True)
        assert load_file(tmp_path / f"out-{same.dtype}" / SINGLE_FILE).keys() == tensors.keys()
        shutil.rmtree(tmp_path / f"out-{same.dtype}")
    other = embedding.clone()
    other[-1, -1] += 1
    for wrong, words in (
        (other, r"unexpected: lm_head\.weight differs from model\.embed_tokens\.weight, but tie_word_embeddings"),
        (embedding.view(-1).clone(), r"wrong shape: lm_head\.weight: expected \(37, 16\), found \(592,\)"),
        (embedding[:36].clone(), r"wrong shape: lm_head\.weight: expected \(37, 16\), found \(36, 16\)"),
        (embedding.to(torch.int8), r"wrong dtype: lm_head\.weight: expected one of .*, found I8"),
    ):
        save_file(tensors | {key: wrong}, tied / SINGLE_FILE)
        assert_refused(tmp_path, "hf", words)
    both = {"model.embed_tokens.weight": embedding.view(-1).clone(), key: embedding.view(-1).clone()}
    save_file(tensors | both, tied / SINGLE_FILE)
    assert_refused(tmp_path, "hf", r"wrong shape: model\.embed_tokens\.weight: expected \(37, 16\), found \(592,\)")
    (tied / SINGLE_FILE).write_bytes(original)
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert_refused(tmp_path, "hf", r"missing: lm_head\.weight \(37, 16\)")


def test_a_thousand_faults_are_told_in_a_few_lines(single: Path, tmp_path: Path) -> None:
    """A model under another prefix: what is missing does not push out what is there instead."""
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 200}))
    tensors = load_file(single / SINGLE_FILE)
    save_file({f"base.{name}": tensor for name, tensor in tensors.items()}, single / SINGLE_FILE)
    with pytest.raises(CheckpointError) as caught:
        convert(single, tmp_path / "out")
    missing = 200 * 9 + 3
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 9 + 9 + 1
    assert f"; {missing + len(tensors)} differences:" in lines[0]
    assert lines[9] == f"  missing: and {missing - 8} more"
    assert lines[18] == f"  unexpected: and {len(tensors) - 8} more"
    assert list_by_kind([("a", "1"), ("b", "2"), ("a", "3")], shown=1) == "a: 1\n  a: and 1 more\n  b: 2"


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


def mapped_files(directory: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if str(directory) in line}


def test_many_small_files_are_not_all_open_at_once(made: Path, tmp_path: Path) -> None:
    directory = tmp_path / "many"
    convert(made / "single", directory, to="hf", shard_bytes=1, check=True)
    more = {f"more.{number}": f"more-{number}.safetensors" for number in range(2 * OPEN_FILES)}
    for name, file in more.items():
        save_file({name: torch.zeros(1)}, directory / file)
    change_index(directory, lambda located: located.update(more))
    with open_hf_checkpoint(directory) as checkpoint:
        checkpoint.validate(hf_tensors(read_model_shape(directory)) | dict.fromkeys(more, (1,)))
        assert 1 < len(mapped_files(directory)) <= OPEN_FILES


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
