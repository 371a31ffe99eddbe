"""torch.distributed.checkpoints as people have them: another program's, edited, incomplete, and hostile."""

import dataclasses
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_convert import write_random_checkpoint

from megarl.checkpoint.convert import convert
from megarl.checkpoint.dist_format import COMMON_FILE, CONFIG_FILE, METADATA_FILE
from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.dist_writer import DistWriter, Written, finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.models.families import read_model_shape
from megarl.models.global_space import extra_state_objects, global_tensors
from tests.checkpoint.test_convert import assert_refused, complete, contents, without_strangers
from tests.checkpoint.test_dist_files import Command
from tests.checkpoint.test_hf_checkpoint import write_source
from tests.models.shapes import CONFIGS

KEY = "decoder.layers.mlp.linear_fc2.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    write_source(directory / "hf")
    convert(directory / "hf", directory / "dist", tensor=2)
    return directory


@pytest.fixture
def dist(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "dist", tmp_path / "dist"))


def edit(directory: Path, change: Callable[[Any], None]) -> None:
    """Change the object in `.metadata`."""
    metadata = pickle.loads((directory / METADATA_FILE).read_bytes())
    change(metadata)
    (directory / METADATA_FILE).write_bytes(pickle.dumps(metadata))


def place_of(metadata: Any, key: str) -> Any:
    """Where the first chunk of a tensor lies."""
    return next(info for index, info in metadata.storage_data.items() if index.fqn == key)


@dataclasses.dataclass
class Edit:
    """What somebody changes in `.metadata`, and what is then said."""

    change: Callable[[Any], Any]
    words: str


def set_chunk(**values: Any) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for name, value in values.items():
            chunk = metadata.state_dict_metadata[KEY].chunks[0]
            if name == "offsets":  # the place is found by them
                index = next(i for i in metadata.storage_data if i.fqn == KEY and i.offset == chunk.offsets)
                info = metadata.storage_data.pop(index)
                metadata.storage_data[dataclasses.replace(index, offset=torch.Size(value))] = info
            setattr(chunk, name, value)

    return change


def set_place(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(place_of(metadata, KEY), name, value)


EDITS = {
    "a chunk that overlaps": Edit(set_chunk(offsets=torch.Size((0, 0, 1))), rf"{KEY} \[2, 16, 24\]: chunks at"),
    "a hole": Edit(set_chunk(sizes=torch.Size((1, 16, 11))), rf"{KEY} \[2, 16, 24\]: chunks hold 752 of 768"),
    "outside": Edit(set_chunk(sizes=torch.Size((1, 16, 99))), r"lies outside \[2, 16, 24\]"),
    "a chunk less": Edit(
        lambda metadata: metadata.state_dict_metadata[KEY].chunks.pop(), "chunks hold 576 of 768 elements"
    ),
    "negative": Edit(set_chunk(sizes=(1, 16, -12)), r"it has \[1, 16, -12\] in the place of sizes"),
    "no number": Edit(set_chunk(sizes=("1", 16, 12)), r"it has \['1', 16, 12\] in the place of sizes"),
    "beyond 64 bits": Edit(set_chunk(sizes=(1 << 70, 16, 12)), "in the place of sizes"),
    "no place": Edit(
        lambda metadata: metadata.storage_data.pop(next(i for i in metadata.storage_data if i.fqn == KEY)),
        rf"{KEY} at \[0, 0, 0\] has no place in any file",
    ),
    "out of the directory": Edit(set_place("relative_path", "../__0_0.distcp"), "which is no file of the directory"),
    "the directory": Edit(set_place("relative_path", ""), "which is no file of the directory"),
    "its parent": Edit(set_place("relative_path", ".."), "which is no file of the directory"),
    "a zero byte": Edit(set_place("relative_path", "a\0b"), "which is no file of the directory"),
    "no file's name": Edit(set_place("relative_path", 7), "which is no file of the directory"),
    "an offset before the file": Edit(set_place("offset", -5), r"it has \[-5, \d+\] in the place of sizes"),
    "a length that ends within it": Edit(set_place("length", 99), rf"__0_0\.distcp: {KEY} at \[0, 0, 0\] is damaged"),
    "an offset after the file": Edit(set_place("offset", 1 << 40), rf"truncated: __0_0\.distcp has \d+ bytes; {KEY}"),
    "a length of text": Edit(set_place("length", "9"), "in the place of sizes"),
    "another tensor's place": Edit(
        lambda metadata: place_of(metadata, KEY).__dict__.update(
            place_of(metadata, "decoder.layers.mlp.linear_fc1.weight").__dict__
        ),
        rf"{KEY} at \[0, 0, 0\] is damaged: expected torch\.bfloat16 \[1, 16, 12\], found .* \[1, 12, 16\]",
    ),
    "another dtype": Edit(
        lambda metadata: setattr(metadata.state_dict_metadata[KEY].properties, "dtype", torch.float16),
        rf"{KEY} at \[0, 0, 0\] is damaged: expected torch\.float16 \[1, 16, 12\], found torch\.bfloat16",
    ),
    "a quantised dtype": Edit(
        lambda metadata: setattr(metadata.state_dict_metadata[KEY].properties, "dtype", torch.int8),
        rf"wrong dtype: {KEY}: expected one of float64, float32, bfloat16, float16, found int8",
    ),
    "no dtype": Edit(
        lambda metadata: setattr(metadata.state_dict_metadata[KEY].properties, "dtype", "bfloat16"),
        rf"{KEY} has the dtype 'bfloat16'",
    ),
    "no name": Edit(
        lambda metadata: metadata.state_dict_metadata.update({3: metadata.state_dict_metadata.pop(KEY)}),
        "it has 3 in the place of a name",
    ),
    "another name": Edit(
        lambda metadata: metadata.state_dict_metadata.update({"a": metadata.state_dict_metadata.pop(KEY)}),
        "has no place in any file",
    ),
    "no storage": Edit(lambda metadata: setattr(metadata, "storage_data", None), r"\.metadata is damaged"),
    "no tensors": Edit(lambda metadata: metadata.state_dict_metadata.clear(), rf"missing: {KEY}|missing: and"),
    "no list": Edit(
        lambda metadata: setattr(metadata.state_dict_metadata[KEY], "chunks", 5), r"\.metadata is damaged \(TypeError"
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_metadata_that_somebody_edited(dist: Path, tmp_path: Path, name: str) -> None:
    """It names the tensor, and the file where one is wrong; a conversion to either kind is refused."""
    edit(dist, EDITS[name].change)
    for to in ("hf", "dist"):
        assert_refused(tmp_path, "dist", EDITS[name].words, to=to)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 100_000, '{"sharded_backend": "zarr"}'])
def test_another_formats_metadata_json(dist: Path, tmp_path: Path, text: str) -> None:
    (dist / CONFIG_FILE).write_text(text)
    assert_refused(tmp_path, "dist", r"metadata\.json( is no Megatron-core|: expected sharded_backend \"torch_dist\")")


def test_a_common_file_that_is_missing_or_damaged(made: Path, dist: Path, tmp_path: Path) -> None:
    """It matters where it is copied: Megatron loads nothing without it. A Hugging Face checkpoint has none."""
    content = (dist / COMMON_FILE).read_bytes()
    for damaged in (content[:-30], b"no archive", content.replace(b"data.pkl", b"data.pkx", 1)):
        (dist / COMMON_FILE).write_bytes(damaged)
        assert_refused(tmp_path, "dist", r"common\.pt is damaged", to="dist")
    (dist / COMMON_FILE).unlink()
    assert_refused(tmp_path, "dist", r"common\.pt is missing, without which Megatron loads nothing", to="dist")
    convert(dist, tmp_path / "back", check=True)
    assert contents(tmp_path / "back") == without_strangers(made / "hf")
    (dist / CONFIG_FILE).unlink()  # torch's own has neither
    convert(dist, tmp_path / "again", to="dist", check=True)
    assert torch.load(tmp_path / "again" / COMMON_FILE, weights_only=True) == {"checkpoint_version": 3.0}


def test_a_hostile_common_file_is_copied_and_not_run(dist: Path, tmp_path: Path) -> None:
    torch.save({"args": Command(tmp_path / "ran")}, dist / COMMON_FILE)
    content = (dist / COMMON_FILE).read_bytes()
    convert(dist, tmp_path / "other", to="dist", check=True)
    convert(dist, tmp_path / "back")
    assert (tmp_path / "other" / COMMON_FILE).read_bytes() == content
    assert not (tmp_path / "ran").exists()


def test_classes_of_torch_are_not_changed_by_a_pickle(dist: Path, tmp_path: Path) -> None:
    """A pickle may set attributes of what it makes, and a class is such a thing."""
    hostile = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\nN}\x8c\x05stainK\x01s\x86b."
    from torch.distributed.checkpoint.metadata import Metadata

    (dist / METADATA_FILE).write_bytes(hostile)
    assert_refused(tmp_path, "dist", r"\.metadata is damaged")
    assert not hasattr(Metadata, "stain")


def write_like_megatron(directory: Path, hf: Path, beside: dict[str, torch.Tensor], objects: dict[str, Any]) -> None:
    """A checkpoint of the weights in `hf`, and what Megatron's training saves besides."""
    convert(hf, directory)
    shutil.rmtree(directory / "hf")
    with open_dist_checkpoint(directory) as checkpoint, DistWriter(directory, rank=7) as writer:
        for key, tensor in checkpoint.tensors.items():
            zeros = (0,) * len(tensor.shape)
            writer.write(key, checkpoint.read(key, zeros, tensor.shape), shape=tensor.shape, offsets=zeros)
        for key, values in beside.items():
            writer.write(key, values, shape=tuple(values.shape), offsets=(0,) * values.dim())
        written: Written = writer.finish()
    for file in (METADATA_FILE, CONFIG_FILE, COMMON_FILE, "__objects_0.distcp", "__0_0.distcp"):
        (directory / file).unlink()
    extra = extra_state_objects(read_model_shape(hf))
    finish_dist_checkpoint(directory, [written], objects=[*extra, *objects], common={"iteration": 5})
    for key, value in objects.items():
        put_object(directory, key, value)


def put_object(directory: Path, key: str, value: Any) -> None:
    """Give an object of a checkpoint another content, in a file of its own."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    file = f"__objects_{len(list(directory.glob('__objects_*')))}.distcp"
    (directory / file).write_bytes(buffer.getvalue())

    def change(metadata: Any) -> None:
        info = place_of(metadata, key)
        info.relative_path, info.offset, info.length = file, 0, len(buffer.getvalue())

    edit(directory, change)


def test_megatrons_optimizer_by_buckets_stays_behind_and_is_told(made: Path, tmp_path: Path) -> None:
    """Its default, `dp_reshardable`, is no tensor of the model; weights are all a Hugging Face checkpoint has."""
    bucket = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_0"
    beside = {f"{bucket}.exp_avg": torch.zeros(5), "chained_1.optimizer.state.exp_avg.x": torch.zeros(2)}
    write_like_megatron(tmp_path / "iter_0000005", made / "hf", beside, {"rng_state/shard_0_1": [3]})
    done = convert(tmp_path / "iter_0000005", tmp_path / "back", model=made / "hf", check=True)
    assert done.left_behind == (*sorted(beside), "rng_state")
    assert contents(tmp_path / "back") == without_strangers(made / "hf")
    words = rf"state that is of no tensor of the model.*\n  chained_1.*\n  {re.escape(bucket)}\.exp_avg\n.*--to hf"
    assert_refused(tmp_path, "iter_0000005", words, model=made / "hf", to="dist")


def test_megatrons_optimizer_by_parameters_is_laid_out_anew(made: Path, tmp_path: Path) -> None:
    """`fully_reshardable`: main weights are called `param`."""
    tensors = global_tensors(read_model_shape(made / "hf"))
    generator = torch.Generator().manual_seed(1)
    beside = {
        f"optimizer.state.{kind}.{key}": torch.randn(tensor.shape, generator=generator)
        for key, tensor in tensors.items()
        for kind in ("param", "exp_avg", "exp_avg_sq")
    }
    write_like_megatron(tmp_path / "iter_0000005", made / "hf", beside, {"rng_state/shard_0_1": [3]})
    done = convert(tmp_path / "iter_0000005", tmp_path / "other", model=made / "hf", to="dist", tensor=2, check=True)
    assert done.left_behind == ("rng_state",)
    with open_dist_checkpoint(tmp_path / "other", verify=True) as checkpoint:
        for key, values in beside.items():
            assert torch.equal(checkpoint.read(key, (0,) * values.dim(), tuple(values.shape)), values), key
    done = convert(tmp_path / "iter_0000005", tmp_path / "back", model=made / "hf")
    assert done.left_behind == (*(f"optimizer.state.{k}" for k in ("exp_avg", "exp_avg_sq", "param")), "rng_state")


def test_scales_of_fp8_are_told(made: Path, tmp_path: Path) -> None:
    """What Transformer Engine keeps where it computes in FP8 is not laid out anew; where it does not, it is empty."""
    names = extra_state_objects(read_model_shape(made / "hf"))
    objects = {names[0]: [torch.ones(3)], names[1]: [torch.empty(0)], names[2]: [Command(tmp_path / "ran")]}
    convert(made / "hf", tmp_path / "dist")
    for name, value in objects.items():
        put_object(tmp_path / "dist", name, value)
    done = convert(tmp_path / "dist", tmp_path / "other", to="dist")
    assert done.left_behind == tuple(sorted({names[0].partition("/")[0], names[2].partition("/")[0]}))
    assert not (tmp_path / "ran").exists()


def test_a_runs_checkpoint_is_of_the_model_that_its_manifest_says(made: Path, tmp_path: Path) -> None:
    """Shapes do not tell one rotation from another."""
    checkpoint = tmp_path / "step-000005"
    shutil.copytree(made / "dist", checkpoint)
    config = json.loads((checkpoint / "hf" / "config.json").read_text())
    complete(checkpoint, step=5)
    convert(checkpoint, tmp_path / "back", check=True)
    shutil.copytree(made / "hf", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 77}))
    words = r"is of another model than .*other/config\.json: max_positions: expected 77, found \d+\. Use"
    assert_refused(tmp_path, "step-000005", words, model=tmp_path / "other")
    (checkpoint / "hf" / "tokenizer.json").write_text('{"version": "1.1"}')
    assert_refused(tmp_path, "step-000005", r"step-000005 is damaged: hf/tokenizer\.json: expected checksum")


def test_a_file_that_is_a_directory_and_one_that_is_a_link(dist: Path, tmp_path: Path) -> None:
    file = dist / "__1_0.distcp"
    file.rename(tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    convert(dist, tmp_path / "out", to="dist", check=True)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "blob").unlink()
    assert_refused(tmp_path, "dist", r"missing: __1_0\.distcp, with ")
    file.unlink()
    file.mkdir()
    assert_refused(tmp_path, "dist", r"(truncated: __1_0\.distcp has|__1_0\.distcp: .* is damaged: .*Is a directory)")


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from megarl.checkpoint.convert import convert
source, target, small = map(Path, sys.argv[1:4])
convert(small, target / "small", to=sys.argv[4])
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    convert(source, target / "out", to=sys.argv[4])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("to", ["hf", pytest.param("dist", marks=pytest.mark.slow)])
def test_a_process_that_gets_no_more_memory(made: Path, tmp_path: Path, to: str) -> None:
    """Its files are not called damaged for it."""
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 64}
    write_random_checkpoint(tmp_path / "hf", config | sizes | {"vocab_size": 70_000})
    (tmp_path / "out").mkdir()
    arguments = [*map(str, (tmp_path / "hf", tmp_path / "out", made / "hf")), to]
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"CheckpointError {tmp_path / 'out' / 'out'}: this process got no more memory ("), (
        done.stdout + done.stderr
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small"]


def test_a_file_that_goes_while_it_is_read(dist: Path, tmp_path: Path) -> None:
    """A run that goes on removes its older checkpoints."""
    with open_dist_checkpoint(dist) as checkpoint:
        shutil.rmtree(dist)
        with pytest.raises(CheckpointError, match=r"__\d_0\.distcp cannot be opened: No such file .*removed meanwhile"):
            checkpoint.read(KEY, (0, 0, 0), (2, 16, 24))
