"""Hugging Face checkpoints: read by box, validated whole, written so that transformers loads them."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megarl.checkpoint.hf import CheckpointError, open_hf_checkpoint, save_hf_checkpoint
from megarl.checkpoint.hf_shards import TensorKind, create_shards, plan_shards, write_box
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.models.table import Box, hf_tensors

HIDDEN, VOCAB = 16, 37


@pytest.fixture(params=["llama", "qwen2"])
def family(request):
    return request.param


def write_source(path: Path, *, family: str = "llama", tied: bool = False, **save_options) -> dict[str, torch.Tensor]:
    """A tiny bfloat16 checkpoint by transformers in `path`; returns its tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    torch.manual_seed(3)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
    model = model_class(config).bfloat16()
    model.save_pretrained(path, **save_options)
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "training_args.bin").write_bytes(b"not copied")
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def write_single(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights of the checkpoint in `path`."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")


def test_other_threads_run_while_a_file_is_written(tmp_path):
    """A rank that exports to a slow file system must go on answering."""
    before_s, longest_s, ended = time.monotonic(), 0.0, threading.Event()

    def tick():
        nonlocal before_s, longest_s
        while not ended.wait(0.005):
            now_s = time.monotonic()
            before_s, longest_s = now_s, max(longest_s, now_s - before_s)

    tensor = torch.ones(64 << 20)
    plan = plan_shards({"a": TensorKind((64 << 20,), torch.float32)})
    create_shards(tmp_path, plan)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before_s = started_s = time.monotonic()
        write_box(tmp_path, plan, Box("a", (0,), (64 << 20,)), tensor)
        took_s = time.monotonic() - started_s
    finally:
        ended.set()
        thread.join()
    assert longest_s < took_s / 2


def test_files_are_those_of_safetensors(tmp_path):
    """Byte for byte, whatever the order in which pieces come and tensors are named."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b.é": torch.randn(5, 3, generator=generator),
        "a": torch.randn(4, 2, generator=generator).bfloat16(),
        "b.": torch.randn(7, generator=generator).half(),
        "c": torch.randn(2, 2, generator=generator).double(),
        "B": torch.randn(3, generator=generator),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    plan = plan_shards({name: TensorKind(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
    create_shards(tmp_path, plan)
    for name, tensor in reversed(tensors.items()):
        for row in reversed(range(tensor.shape[0])):
            zeros = (0,) * (tensor.dim() - 1)
            box = Box(name, (row, *zeros), (row + 1, *tensor.shape[1:]))
            write_box(tmp_path, plan, box, tensor[row : row + 1])
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert plan.num_bytes == (tmp_path / "theirs.safetensors").stat().st_size


def test_only_whole_rows_are_written(tmp_path):
    plan = plan_shards({"a": TensorKind((4, 6), torch.float32)})
    create_shards(tmp_path, plan)
    for box, shape in ((Box("a", (0, 0), (2, 3)), (2, 3)), (Box("a", (0, 0), (2, 6)), (3, 6))):
        with pytest.raises(ValueError, match="are no rows of a"):
            write_box(tmp_path, plan, box, torch.zeros(shape))


def test_boxes_of_single_and_sharded_checkpoints(tmp_path, family):
    tensors = write_source(tmp_path / "single", family=family)
    write_source(tmp_path / "sharded", family=family, max_shard_size="2KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for directory in (tmp_path / "single", tmp_path / "sharded"):
        with open_hf_checkpoint(directory) as checkpoint:
            checkpoint.validate(hf_tensors(read_model_shape(directory)))
            assert checkpoint.names() == tuple(sorted(tensors))
            for name, tensor in tensors.items():
                whole = Box(name, (0,) * tensor.dim(), tuple(tensor.shape))
                part = Box(name, (1,) * tensor.dim(), tuple(size - 2 for size in tensor.shape))
                for box in (whole, part):
                    found = checkpoint.read(box)
                    assert (tuple(found.shape), found.dtype) == (box.shape, torch.bfloat16)
                    assert torch.equal(found, tensor[box.slices])


def test_reading_outside_a_tensor_or_after_close_is_an_error(tmp_path):
    write_source(tmp_path)
    checkpoint = open_hf_checkpoint(tmp_path)
    for box in (Box("model.norm.weight", (0,), (HIDDEN + 1,)), Box("model.norm.weight", (0, 0), (1, 1))):
        with pytest.raises(CheckpointError, match="lies outside"):
            checkpoint.read(box)
    with pytest.raises(CheckpointError, match=r"no tensor model\.nothing"):
        checkpoint.read(Box("model.nothing", (0,), (1,)))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="was closed"):
        checkpoint.read(Box("model.norm.weight", (0,), (1,)))


def test_validate_lists_every_difference_at_once(tmp_path):
    tensors = write_source(tmp_path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(9, HIDDEN)
    tensors["model.norm.weight"] = torch.zeros(HIDDEN, dtype=torch.int8)
    tensors["model.layers.0.self_attn.k_norm.weight"] = torch.zeros(4)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)  # accepted
    write_single(tmp_path, tensors)
    with pytest.raises(CheckpointError) as error:
        open_hf_checkpoint(tmp_path).validate(hf_tensors(read_model_shape(tmp_path)))
    text = str(error.value)
    assert "4 differences" in text
    assert "missing: model.layers.1.mlp.up_proj.weight (24, 16)" in text
    assert "wrong shape: model.layers.0.self_attn.k_proj.weight: expected (8, 16), found (9, 16)" in text
    assert "wrong dtype: model.norm.weight" in text
    assert "unexpected: model.layers.0.self_attn.k_norm.weight (4,)" in text


@pytest.mark.parametrize(("change", "words"), [(0.0, None), (1.0, "lm_head.weight differs")])
def test_an_output_layer_beside_tied_embeddings_must_equal_them(tmp_path, change, words):
    tensors = write_source(tmp_path, tied=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
    write_single(tmp_path, tensors)
    checkpoint = open_hf_checkpoint(tmp_path)
    if words is None:
        checkpoint.validate(hf_tensors(read_model_shape(tmp_path)))
    else:
        with pytest.raises(CheckpointError, match=words):
            checkpoint.validate(hf_tensors(read_model_shape(tmp_path)))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_files_are_named(tmp_path, damage):
    write_source(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-10], "garbage": b"\xff" * 64, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(\d+ bytes\) is truncated or corrupt.*again"):
        open_hf_checkpoint(tmp_path)


def test_broken_sharded_checkpoints(tmp_path):
    write_source(tmp_path, max_shard_size="2KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"listed and not held: model\.extra\.weight \(in model-"):
        open_hf_checkpoint(tmp_path)
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(CheckpointError, match=rf"{first.name} is not there; download"):
        open_hf_checkpoint(tmp_path)
    index.write_text("[1]")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_hf_checkpoint(tmp_path)


def test_directories_without_safetensors(tmp_path):
    with pytest.raises(CheckpointError, match="found no such directory"):
        open_hf_checkpoint(tmp_path / "none")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"found pytorch_model\.bin; convert"):
        open_hf_checkpoint(tmp_path)


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 3000])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_what_transformers_loads(tmp_path, family, tied, max_shard_bytes):
    from transformers import AutoModelForCausalLM

    tensors = write_source(tmp_path / "source", family=family, tied=tied)
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    out = tmp_path / "new" / "out"
    result = save_hf_checkpoint(
        out, changed.items(), source=tmp_path / "source", dtype=torch.bfloat16, max_shard_bytes=max_shard_bytes
    )
    assert result == out
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    files = sorted(out.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 3000)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        largest = max(tensor.numel() * 2 for tensor in load_file(file).values())
        assert sum(tensor.numel() * 2 for tensor in load_file(file).values()) <= max(max_shard_bytes, largest)
        assert file.stat().st_mode == (out / "config.json").stat().st_mode
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, changed[name]), name
    with open_hf_checkpoint(out) as checkpoint:
        checkpoint.validate(hf_tensors(read_model_shape(out)))


def test_config_names_the_new_dtype_and_the_tokenizer_comes_along(tmp_path):
    tensors = write_source(tmp_path / "source")
    out = save_hf_checkpoint(tmp_path / "out", tensors.items(), source=tmp_path / "source", dtype=torch.float32)
    before = json.loads((tmp_path / "source" / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == before | {"dtype": "float32"}
    names = {file.name for file in out.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model.safetensors",
    }
    with open_hf_checkpoint(out) as checkpoint:
        assert checkpoint.read(Box("model.norm.weight", (0,), (1,))).dtype == torch.float32


def test_tensors_may_reuse_one_buffer(tmp_path):
    tensors = write_source(tmp_path / "source")
    buffer = torch.empty(max(tensor.numel() for tensor in tensors.values()), dtype=torch.bfloat16)

    def stream():
        for name, tensor in tensors.items():
            view = buffer[: tensor.numel()].view(tensor.shape)
            view.copy_(tensor)
            yield name, view

    out = save_hf_checkpoint(tmp_path / "out", stream(), source=tmp_path / "source", dtype=torch.bfloat16)
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())


def change_nothing(tensors):
    yield from tensors.items()


def leave_one_out(tensors):
    yield from list(tensors.items())[:-1]


def give_one_twice(tensors):
    yield from tensors.items()
    yield next(iter(tensors.items()))


def keep_padding(tensors):
    for name, tensor in tensors.items():
        yield name, torch.cat([tensor, torch.zeros(3, HIDDEN)]) if "embed" in name else tensor


def add_another(tensors):
    yield "lm_head.bias", torch.zeros(VOCAB)


def fail_midway(tensors):
    yield next(iter(tensors.items()))
    raise RuntimeError("a rank died")


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (leave_one_out, r"1 of 21 tensors were not given: lm_head\.weight"),
        (give_one_twice, r"model\.embed_tokens\.weight was given twice"),
        (keep_padding, r"expected shape \(37, 16\).*found \(40, 16\)"),
        (add_another, r"lm_head\.bias is no tensor"),
        (fail_midway, "a rank died"),
    ],
)
def test_a_failed_save_leaves_nothing(tmp_path, stream, words):
    tensors = write_source(tmp_path / "source")
    with pytest.raises((CheckpointError, RuntimeError), match=words):
        save_hf_checkpoint(
            tmp_path / "out", stream(tensors), source=tmp_path / "source", dtype=torch.bfloat16, max_shard_bytes=2000
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_existing_checkpoint_is_not_overwritten_and_remains_of_a_killed_save_are(tmp_path):
    tensors = write_source(tmp_path / "source")
    remains = tmp_path / ".out.partial"
    remains.mkdir()
    (remains / "9.shard").write_bytes(b"x")
    options = {"source": tmp_path / "source", "dtype": torch.bfloat16}
    out = save_hf_checkpoint(tmp_path / "out", change_nothing(tensors), **options)
    assert not remains.exists()
    assert not (out / "9.shard").exists()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_hf_checkpoint(out, change_nothing(tensors), **options)
    with pytest.raises(CheckpointError, match=r"dtype.*int8"):
        save_hf_checkpoint(tmp_path / "other", change_nothing(tensors), source=tmp_path / "source", dtype=torch.int8)
    with pytest.raises(ModelError, match="found no"):
        save_hf_checkpoint(tmp_path / "other", change_nothing(tensors), source=tmp_path, dtype=torch.bfloat16)
