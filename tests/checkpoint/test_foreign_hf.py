"""Hugging Face checkpoints as people have them: edited by hand, linked, sharded wrongly, and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megarl.checkpoint.convert import convert
from megarl.checkpoint.errors import CheckpointError, list_by_kind
from megarl.checkpoint.hf import OPEN_FILES, open_hf_checkpoint
from megarl.checkpoint.hf_shards import INDEX_FILE, SINGLE_FILE
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors
from tests.checkpoint.test_convert import assert_refused, replace_weights


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


def test_weights_that_are_there_twice(sharded: Path, hf_models: Path, tmp_path: Path) -> None:
    """transformers takes the one, vLLM the other."""
    shutil.copy(hf_models / "single" / SINGLE_FILE, sharded)
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


def mapped_files(directory: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if str(directory) in line}


def test_many_small_files_are_not_all_open_at_once(hf_models: Path, tmp_path: Path) -> None:
    directory = tmp_path / "many"
    convert(hf_models / "single", directory, to="hf", shard_bytes=1, check=True)
    more = {f"more.{number}": f"more-{number}.safetensors" for number in range(2 * OPEN_FILES)}
    for name, file in more.items():
        save_file({name: torch.zeros(1)}, directory / file)
    change_index(directory, lambda located: located.update(more))
    with open_hf_checkpoint(directory) as checkpoint:
        checkpoint.validate(hf_tensors(read_model_shape(directory)) | dict.fromkeys(more, (1,)))
        assert 1 < len(mapped_files(directory)) <= OPEN_FILES
