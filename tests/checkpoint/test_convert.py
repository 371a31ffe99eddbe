"""`convert`: there and back byte for byte, bounded in memory, by several processes, and what it says of bad input."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_convert import write_random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megarl.checkpoint.convert import convert
from megarl.checkpoint.dist_format import read_contents
from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.dist_writer import DistWriter, checksum_of, finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_files import HF_DIRECTORY
from megarl.checkpoint.manifest import describe_model
from megarl.checkpoint.sources import split_key
from megarl.models.families import read_model_shape
from megarl.models.global_space import extra_state_objects, global_tensors
from megarl.models.shape import ModelError
from tests.checkpoint.mounts import make_read_only, tmpfs
from tests.checkpoint.test_dist_files import flip_byte_of
from tests.checkpoint.test_hf_checkpoint import write_source
from tests.checkpoint.test_run_checkpoint import make_manifest
from tests.models.shapes import CONFIGS

FILES = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def without_strangers(source: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(source).items() if name != "training_args.bin"}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_there_to_another_layout_and_back_is_the_same_checkpoint(tmp_path, family, tied):
    """Every file, byte for byte: weights, index, config, tokenizer, generation config, chat template."""
    write_source(tmp_path / "hf", family=family, tied=tied)
    convert(tmp_path / "hf", tmp_path / "a", tensor=2, pipeline=2, check=True)
    convert(tmp_path / "a", tmp_path / "b", to="dist", tensor=1, pipeline=1, check=True)
    convert(tmp_path / "b", tmp_path / "back", check=True)
    assert contents(tmp_path / "back") == without_strangers(tmp_path / "hf")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "a", "b", "back"}


def test_the_files_of_a_sharded_checkpoint_are_the_same(tmp_path):
    write_source(tmp_path / "hf", max_shard_size="3KB")
    convert(tmp_path / "hf", tmp_path / "dist", shard_bytes=2000)
    assert len(list((tmp_path / "dist").glob("*.distcp"))) > 3
    convert(tmp_path / "dist", tmp_path / "back", shard_bytes=3000)
    before, after = without_strangers(tmp_path / "hf"), contents(tmp_path / "back")
    assert len(before) > 8
    assert json.loads(before.pop("model.safetensors.index.json")) == json.loads(
        after.pop("model.safetensors.index.json")
    )
    assert after == before


def test_chunks_are_those_of_the_ranks(tmp_path):
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "dist", tensor=2, pipeline=2)
    stored = read_contents(tmp_path / "dist")
    shape = read_model_shape(tmp_path / "hf")
    assert {key: tensor.shape for key, tensor in stored.tensors.items()} == {
        key: tensor.shape for key, tensor in global_tensors(shape).items()
    }
    assert stored.objects.keys() == set(extra_state_objects(shape))
    places = {
        (chunk.file, chunk.offsets, chunk.sizes)
        for chunk in stored.tensors["decoder.layers.mlp.linear_fc1.weight"].chunks
    }
    # Rank = stage * 2 + tensor rank; layers 0 and 1; the MLP of 24: 12 gate and 12 up rows each.
    assert places == {
        (f"__{2 * layer + rank}_0.distcp", (layer, 24 * half + 12 * rank, 0), (1, 12, 16))
        for layer in range(2)
        for rank in range(2)
        for half in range(2)
    }
    (norm,) = stored.tensors["decoder.final_layernorm.weight"].chunks
    assert norm.file == "__2_0.distcp"  # the last stage's first tensor rank


def test_several_processes_write_the_same(tmp_path):
    write_source(tmp_path / "hf", family="qwen2")
    heard = []
    alone = convert(tmp_path / "hf", tmp_path / "alone", tensor=2)
    done = convert(
        *(tmp_path / "hf", tmp_path / "dist"),
        tensor=2,
        processes=2,
        check=True,
        listen=lambda *progress: heard.append(progress),
    )
    convert(tmp_path / "dist", tmp_path / "back")
    assert contents(tmp_path / "back") == without_strangers(tmp_path / "hf")
    total = done.num_bytes
    assert total == alone.num_bytes == sum(t.numel() * 2 for t in load_file(tmp_path / "hf/model.safetensors").values())
    assert heard[0] == ("convert", 0, total)
    assert {("convert", total, total), ("compare", total, total)} <= set(heard)
    assert done.peak_bytes > alone.peak_bytes + 2 * 50e6  # two more processes, and each has torch


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_another_dtype_is_in_the_weights_and_in_the_config(tmp_path, name):
    from transformers import AutoModelForCausalLM

    tensors = write_source(tmp_path / "hf")
    dtype = getattr(torch, name)
    convert(tmp_path / "hf", tmp_path / "dist", dtype=dtype, check=True)
    convert(tmp_path / "dist", tmp_path / "back", check=True)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    for key, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, tensors[key].to(dtype)), key
    if name == "float32":  # float16 is coarser than bfloat16 near zero
        convert(tmp_path / "back", tmp_path / "again", to="hf", dtype=torch.bfloat16)
        assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "hf/model.safetensors").read_bytes()


def write_run_checkpoint(source: Path, target: Path) -> dict[str, torch.Tensor]:
    """What a run stores beside weights in bfloat16: float32 moments and main weights, a reference; returns them."""
    convert(source, target, tensor=2)
    generator = torch.Generator().manual_seed(4)
    beside, writer = {}, DistWriter(target, rank=9)
    with open_dist_checkpoint(target) as checkpoint, writer:
        for key, tensor in checkpoint.tensors.items():
            values = checkpoint.read(key, (0,) * len(tensor.shape), tensor.shape)
            writer.write(key, values, shape=tensor.shape, offsets=(0,) * len(tensor.shape))
            for prefix in ("optimizer.state.exp_avg.", "optimizer.state.fp32_param.", "reference."):
                beside[prefix + key] = torch.randn(tensor.shape, generator=generator)
                writer.write(prefix + key, beside[prefix + key], shape=tensor.shape, offsets=(0,) * len(tensor.shape))
        written = writer.finish()
    for file in (".metadata", "metadata.json", "common.pt", "__objects_0.distcp", "__0_0.distcp", "__1_0.distcp"):
        (target / file).unlink()
    finish_dist_checkpoint(target, [written], common={"step": 5})
    return beside


def complete(checkpoint: Path, *, step: int) -> None:
    """Write the manifest of a run's checkpoint."""
    files = {
        str(file.relative_to(checkpoint)): {"bytes": file.stat().st_size, "checksum": checksum_of(file)}
        for file in checkpoint.rglob("*")
        if file.is_file()
    }
    model = describe_model(read_model_shape(checkpoint / HF_DIRECTORY))
    make_manifest(checkpoint, step=step, files=files, model=model).write(checkpoint)


def test_a_runs_checkpoint_keeps_its_optimizer_as_dist_and_leaves_it_as_hf(tmp_path):
    write_source(tmp_path / "hf", family="qwen2")
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-000009.partial").mkdir(parents=True)
    shutil.copytree(tmp_path / "hf", run / "checkpoints" / "step-000002")  # no checkpoint of a run
    beside = write_run_checkpoint(tmp_path / "hf", run / "checkpoints" / "step-000005")
    complete(run / "checkpoints" / "step-000005", step=5)
    convert(tmp_path / "hf", run / "checkpoints" / "step-000005-copy")  # somebody's
    done = convert(run, tmp_path / "dist", to="dist", tensor=2, pipeline=2, dtype=torch.float16, check=True)
    assert (done.left_behind, done.path) == ((), run / "checkpoints" / "step-000005")
    with open_dist_checkpoint(tmp_path / "dist") as checkpoint:
        for key, values in beside.items():
            assert torch.equal(checkpoint.read(key, (0,) * values.dim(), tuple(values.shape)), values), key
            weight = checkpoint.tensors[split_key(key)[1]]
            assert [c.offsets for c in checkpoint.tensors[key].chunks] == [c.offsets for c in weight.chunks]
    assert torch.load(tmp_path / "dist" / "common.pt", weights_only=True) == {"step": 5}
    done = convert(run, tmp_path / "back", check=True)
    assert done.left_behind == ("optimizer.state.exp_avg", "optimizer.state.fp32_param", "reference")
    assert contents(tmp_path / "back") == without_strangers(tmp_path / "hf")


def replace_weights(source: Path, change) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors")


def assert_refused(tmp_path: Path, source: str, words: str, **options) -> None:
    """CheckpointError or ModelError with these words, and nothing at the target or beside it."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((CheckpointError, ModelError), match=words):
        convert(tmp_path / source, tmp_path / "target", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_hugging_face_input_that_is_not_the_model(tmp_path):
    write_source(tmp_path / "hf")

    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.zeros(4)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(23, 16)

    replace_weights(tmp_path / "hf", change)
    for words in (
        r"missing: model\.norm\.weight \(16,\)",
        r"unexpected: model\.layers\.0\.self_attn\.q_norm\.weight \(4,\)",
        r"wrong shape: model\.layers\.1\.mlp\.up_proj\.weight: expected \(24, 16\), found \(23, 16\)",
    ):
        assert_refused(tmp_path, "hf", words)


def test_truncated_hugging_face_input_names_file_and_tensor(tmp_path):
    write_source(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 3)
    # The last of the names, in whose order the file has its tensors.
    assert_refused(tmp_path, "hf", r"model\.safetensors \(\d+ bytes\) is truncated.*\(lost: model\.norm\.weight\)")


def test_a_file_with_a_tensor_that_the_index_does_not_list(tmp_path):
    write_source(tmp_path / "hf", max_shard_size="3KB")
    file = next((tmp_path / "hf").glob("model-00001*.safetensors"))
    save_file(load_file(file) | {"stranger": torch.zeros(2)}, file)
    assert_refused(tmp_path, "hf", rf"held and not listed: stranger \(in {file.name}\)")


def test_mixed_dtypes_need_one(tmp_path):
    write_source(tmp_path / "hf")
    replace_weights(
        tmp_path / "hf", lambda tensors: tensors.update({"model.layers.1.input_layernorm.weight": torch.ones(16)})
    )
    assert_refused(
        tmp_path, "hf", r"expected one dtype, found model\.layers\.0\.input_layernorm\.weight bfloat16, model"
    )
    convert(tmp_path / "hf", tmp_path / "dist", dtype=torch.float32, check=True)


def test_numbers_that_float16_does_not_have(tmp_path):
    write_source(tmp_path / "hf")
    replace_weights(tmp_path / "hf", lambda tensors: tensors["model.norm.weight"].fill_(7e4))
    for options in ({"to": "hf"}, {"to": "dist"}):
        words = r"norm\.weight has numbers that float16 does not"
        assert_refused(tmp_path, "hf", words, dtype=torch.float16, **options)


def test_a_layout_that_does_not_split_the_model(tmp_path):
    write_source(tmp_path / "hf")
    assert_refused(tmp_path, "hf", "4 attention heads are not a multiple", tensor=3)
    assert_refused(tmp_path, "hf", "2 layers are not a multiple of pipeline 4", pipeline=4)


def test_distributed_input_that_is_damaged(tmp_path):
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "dist", tensor=2)
    shutil.copytree(tmp_path / "dist", tmp_path / "good")
    key = "decoder.layers.mlp.linear_fc2.weight"
    file = flip_byte_of(tmp_path / "dist", key)
    assert_refused(tmp_path, "dist", rf"{file}: decoder\.layers\.mlp\.linear_fc2\.weight at .* is damaged")
    assert_refused(tmp_path, "dist", r"decoder\.layers\.mlp\.linear_fc2\.weight at .* is damaged", processes=2)
    shutil.rmtree(tmp_path / "dist")
    shutil.copytree(tmp_path / "good", tmp_path / "dist")
    (tmp_path / "dist" / "__1_0.distcp").unlink()
    assert_refused(tmp_path, "dist", r"missing: __1_0\.distcp, with ")
    shutil.rmtree(tmp_path / "dist" / "hf")
    assert_refused(tmp_path, "dist", r"expected config\.json and the tokenizer .*--model")
    assert_refused(tmp_path, "dist", r"in .*nowhere, found none; correct --model", model=tmp_path / "nowhere")


def test_distributed_input_that_is_not_the_model(tmp_path):
    write_source(tmp_path / "hf")
    (tmp_path / "dist").mkdir()
    with DistWriter(tmp_path / "dist", rank=0) as writer:
        writer.write("decoder.final_layernorm.weight", torch.zeros(15), shape=(15,), offsets=(0,))
        writer.write("decoder.layers.1.mlp.linear_fc2.weight", torch.zeros(2), shape=(2,), offsets=(0,))
        writer.write("output_layer.weight", torch.zeros(36, 16), shape=(36, 16), offsets=(0, 0))
        finish_dist_checkpoint(tmp_path / "dist", [writer.finish()])
    for words in (
        r"wrong shape: decoder\.final_layernorm\.weight: expected \[16\], found \[15\]",
        r"unexpected: decoder\.layers\.1\.mlp\.linear_fc2\.weight \[2\]",
        r"wrong shape: output_layer\.weight: expected \[37, 16\], found \[36, 16\]",
        r"missing: embedding\.word_embeddings\.weight \[37, 16\]",
        "It has tensors of single layers",
    ):
        assert_refused(tmp_path, "dist", words, model=tmp_path / "hf")


def test_a_target_that_exists_and_a_source_that_does_not(tmp_path):
    write_source(tmp_path / "hf")
    assert_refused(tmp_path, "nothing", "found nothing at")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()
    assert_refused(tmp_path, "hf", "exists and is not empty")


def large_config(**sizes: int) -> dict:
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1024}
    return config | heads | {"hidden_size": 1024} | sizes


def test_a_process_that_is_killed(tmp_path):
    write_random_checkpoint(tmp_path / "hf", large_config(intermediate_size=4096, num_hidden_layers=4))

    def kill_one(*_):
        for child in multiprocessing.active_children()[:1]:
            os.kill(child.pid, signal.SIGKILL)

    assert_refused(tmp_path, "hf", r"died \(exit code -9\); nothing was kept", processes=2, listen=kill_one)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("to", "free_kib", "words"),
    [
        ("hf", 8, "GB are to be written"),
        ("dist", 8, "GB are to be written"),
        ("dist", 40, "the disk is full"),  # what torch.save adds to small tensors is not known before
    ],
)
def test_a_full_disk(tmp_path, to, free_kib, words):
    write_source(tmp_path / "hf")
    with tmpfs(tmp_path / "disk", size=f"{free_kib}k") as disk:
        with pytest.raises(CheckpointError, match=words):
            convert(tmp_path / "hf", disk / "target", to=to)
        assert list(disk.iterdir()) == []


def test_a_disk_that_may_not_be_written(tmp_path):
    write_source(tmp_path / "hf")
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        make_read_only(disk)
        with pytest.raises(CheckpointError, match=r"target: it cannot be written \(.*Read-only file system"):
            convert(tmp_path / "hf", disk / "target")


MEASURED = """
import sys
from pathlib import Path
import torch
from megarl.checkpoint import convert
from megarl.telemetry.resident_memory import peak_resident_bytes
source, target, small = map(Path, sys.argv[1:4])
convert.convert(small, target / "small")
convert.convert(target / "small", target / "small-back")
before = peak_resident_bytes()
convert.convert(source, target / "dist")
convert.convert(target / "dist", target / "back")
print(peak_resident_bytes() - before)
"""


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """A model of 0.4 GB in tensors of at most 17 MB; what torch itself has is there before, from a small one."""
    write_random_checkpoint(tmp_path / "small", large_config(intermediate_size=256, num_hidden_layers=1))
    size = write_random_checkpoint(tmp_path / "large", large_config(intermediate_size=8192, num_hidden_layers=8))
    assert size > 430e6
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in ("large", "out", "small"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 0.4 * size
    first, back = (load_names(tmp_path / name) for name in ("large", "out/back"))
    assert first == back


def load_names(directory: Path) -> dict[str, int]:
    """A checksum of every tensor."""
    sums = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                sums[name] = opened.get_tensor(name).view(torch.int16).sum(dtype=torch.int64).item()
    return sums


def test_a_run_that_saved_nothing_says_where_its_weights_are(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"is a run without a complete checkpoint .* are in .*run/hf$"):
        convert(tmp_path / "run", tmp_path / "target")
