"""The global space against Megatron-core's own: what its GPTModel declares, and what its loader makes of ours."""

from pathlib import Path

import pytest
import torch

from megarl.checkpoint.convert import convert
from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.models.global_space import extra_state_objects, global_tensors, rank_pieces
from megarl.models.shards import fill_parameter
from megarl.models.table import list_parameters
from tests.dist.gloo import run_on_ranks
from tests.models.test_megatron_model import build_megatron, write_model


def declared(chunks):
    """{key: [(global offset, shape, global shape, elements)]} of what Megatron's `sharded_state_dict` declares here;
    names of its objects."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, apply_factories

    found, objects = {}, set()
    for chunk in chunks:
        state = chunk.sharded_state_dict()
        apply_factories(state)
        for sharded in nested_values(state):
            if isinstance(sharded, ShardedObject):
                objects.add(sharded.unique_key)
                continue
            axes = (1,) * sharded.prepend_axis_num
            place = (sharded.global_offset, (*axes, *sharded.local_shape), sharded.global_shape, sharded.data)
            found.setdefault(sharded.key, []).append(place)
    return found, objects


def compare_declarations(path: str, tensor: int, pipeline: int, virtual: int) -> int:
    """Every element that Megatron declares lies where our pieces put it; returns how many were compared."""
    chunks, shape, layout = build_megatron(path, tensor, pipeline, virtual)
    placed = rank_pieces(shape, layout)
    for chunk, name in placed:
        # Numbers that tell each element of each parameter of this rank apart.
        target = dict(chunks[chunk].named_parameters())[name].data
        target.copy_(torch.arange(target.numel()).reshape(target.shape) + hash((chunk, name)) % 997)
    ours = {}
    for (chunk, name), parameter in placed.items():
        values = dict(chunks[chunk].named_parameters())[name].data
        for piece in parameter.pieces:
            rows = ours.setdefault(piece.key, {})
            for offset, value in elements(piece.offsets, values[piece.local].reshape(piece.sizes)):
                rows[offset] = value
    found, objects = declared(chunks)
    tensors, compared = global_tensors(shape), 0
    assert found.keys() == ours.keys()
    assert objects <= set(extra_state_objects(shape))
    for key, places in found.items():
        theirs = {}
        for offsets, _, global_shape, data in places:
            padded = key in ("embedding.word_embeddings.weight", "output_layer.weight")
            assert global_shape[1:] == tensors[key].shape[1:]
            assert global_shape[0] >= tensors[key].shape[0] if padded else global_shape == tensors[key].shape
            sizes = (*(1 for _ in range(len(global_shape) - data.dim())), *data.shape)
            theirs |= dict(elements(offsets, data.reshape(sizes)))
        rows = tensors[key].shape[0]
        theirs = {offset: value for offset, value in theirs.items() if offset[0] < rows}
        assert theirs == ours[key], key
        compared += len(theirs)
    return compared


def elements(offsets, values):
    for index, value in zip(
        torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(), values.reshape(-1).tolist(), strict=True
    ):
        steps = index if isinstance(index, list) else [index]
        yield tuple(low + step for low, step in zip(offsets, steps, strict=True)), value


@pytest.mark.parametrize(
    ("family", "tied", "tensor", "pipeline", "virtual"),
    [
        ("qwen2", False, 1, 1, 1),
        pytest.param("qwen2", True, 2, 2, 1, marks=pytest.mark.slow),
        pytest.param("llama", True, 1, 2, 2, marks=pytest.mark.slow),
        pytest.param("llama", False, 4, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_megatron_declares_every_element_where_the_space_has_it(tmp_path, family, tied, tensor, pipeline, virtual):
    write_model(tmp_path, family=family, tied=tied, layers=4)
    counts = run_on_ranks(compare_declarations, tensor * pipeline, str(tmp_path), tensor, pipeline, virtual)
    assert min(counts) > 5000


def load_by_megatron(path: str, converted: str, tensor: int, pipeline: int) -> int:
    """Megatron's loader fills a model from `converted`; it is compared with what is filled from `path`."""
    from megatron.core import dist_checkpointing

    (model,), shape, layout = build_megatron(path, tensor, pipeline, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    loaded, missing, unexpected = dist_checkpointing.load(model.sharded_state_dict(), converted, strict="return_all")
    assert unexpected == set()  # asked for and not there
    # There and not asked for: what only Transformer Engine's layers have.
    assert {key.rsplit(".", 1)[-1] for key in missing} <= {"_extra_state"}
    loaded = {key: value for key, value in loaded.items() if not isinstance(value, list)}
    incompatible = model.load_state_dict(loaded, strict=False)
    assert all(key.endswith("_extra_state") for key in incompatible.missing_keys), incompatible
    parameters = dict(model.named_parameters())
    with open_hf_checkpoint(path) as checkpoint:
        for entry in list_parameters(shape, layout):
            expected = torch.empty(entry.shape)
            fill_parameter(expected, entry, checkpoint.read)
            assert torch.equal(parameters[entry.name].data, expected), entry.name
    return len(parameters)


@pytest.mark.parametrize(
    ("family", "tied", "written", "loaded"),
    [
        ("qwen2", True, (2, 2), (1, 1)),
        pytest.param("qwen2", False, (1, 1), (2, 2), marks=pytest.mark.slow),
        pytest.param("llama", True, (1, 4), (1, 2), marks=pytest.mark.slow),
        pytest.param("llama", False, (4, 2), (4, 1), marks=pytest.mark.slow),
    ],
)
def test_megatrons_loader_loads_what_is_converted(tmp_path, family, tied, written, loaded):
    """Written for one layout, loaded under another; the vocabulary is padded at the loader alone."""
    write_model(tmp_path / "hf", family=family, tied=tied, layers=4)
    convert(tmp_path / "hf", tmp_path / "dist", tensor=written[0], pipeline=written[1])
    counts = run_on_ranks(
        load_by_megatron, loaded[0] * loaded[1], str(tmp_path / "hf"), str(tmp_path / "dist"), *loaded
    )
    assert min(counts) > 10


def save_by_megatron(path: str, target: str, tensor: int, pipeline: int) -> None:
    """What Megatron's own translation gives torch's writer. Its asynchronous one asks for CUDA when it ends."""
    import torch.distributed.checkpoint as dcp
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    (model,), shape, layout = build_megatron(path, tensor, pipeline, 1)
    parameters = dict(model.named_parameters())
    with open_hf_checkpoint(path) as checkpoint:
        for entry in list_parameters(shape, layout):
            fill_parameter(parameters[entry.name].data, entry, checkpoint.read)
    sharded, common = save_preprocess(model.sharded_state_dict(), True)
    state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    state = mcore_to_pyt_state_dict(state, False)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(target, thread_count=2), planner=planner)
    if torch.distributed.get_rank() == 0:
        save_config(CheckpointingConfig("torch_dist"), target)
        torch.save(common, Path(target) / "common.pt")


@pytest.mark.parametrize(
    ("family", "tied", "layout"),
    [("qwen2", False, (1, 1)), pytest.param("llama", True, (2, 2), marks=pytest.mark.slow)],
)
def test_what_megatron_saves_becomes_a_hugging_face_checkpoint(tmp_path, family, tied, layout):
    """With a padded vocabulary, norms of the local spec, and chunks of Megatron's making."""
    write_model(tmp_path / "hf", family=family, tied=tied, layers=4)
    (tmp_path / "dist").mkdir()
    run_on_ranks(save_by_megatron, layout[0] * layout[1], str(tmp_path / "hf"), str(tmp_path / "dist"), *layout)
    convert(tmp_path / "dist", tmp_path / "back", model=tmp_path / "hf", check=True)
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("hf", "back"))
    assert before == after
