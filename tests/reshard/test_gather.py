"""The plan of the reference path: every tensor exactly once, in buckets, from the first rank that holds a part."""

import dataclasses

import pytest
import torch

from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors, list_parameters
from megarl.reshard.gather import gather_hf_tensors, plan_gather, sent_from
from megarl.reshard.regions import parameter_key

SHAPE = ModelShape(
    family="qwen2",
    num_layers=2,
    hidden_size=16,
    ffn_size=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=21,
    max_positions=64,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    tied_embeddings=True,
    qkv_bias=True,
    hf_dtype="float32",
)


def entries(tensor: int, pipeline: int) -> dict[int, tuple]:  # type: ignore[type-arg]
    layouts = {
        t + tensor * p: layout_of(SHAPE, tensor_rank=t, tensor_size=tensor, pipeline_rank=p, pipeline_size=pipeline)
        for p in range(pipeline)
        for t in range(tensor)
    }
    return {rank: list_parameters(SHAPE, layout) for rank, layout in layouts.items()}


def test_every_element_is_planned_once() -> None:
    plan = plan_gather(entries(2, 2), hf_tensors(SHAPE), bucket_bytes=4096, dtype=torch.bfloat16)
    assert sorted(name for bucket in plan.buckets for name in bucket) == sorted(hf_tensors(SHAPE))
    # The tied embedding lies on both stages and is sent by the first; a norm by tensor rank 0.
    assert {part.rank for part in plan.parts["model.embed_tokens.weight"]} == {0, 1}
    assert [part.rank for part in plan.parts["model.norm.weight"]] == [2]


def test_buckets_hold_whole_tensors_within_the_limit_or_one_larger() -> None:
    plan = plan_gather(entries(1, 1), hf_tensors(SHAPE), bucket_bytes=1000, dtype=torch.float32)
    sizes = {name: torch.Size(shape).numel() * 4 for name, shape in plan.shapes.items()}
    for bucket in plan.buckets:
        assert len(bucket) == 1 or sum(sizes[name] for name in bucket) <= 1000
    assert any(sizes[bucket[0]] > 1000 for bucket in plan.buckets)


def test_a_missing_rank_is_refused() -> None:
    incomplete = {rank: table for rank, table in entries(2, 1).items() if rank == 0}
    with pytest.raises(ValueError, match="the ranks hold"):
        plan_gather(incomplete, hf_tensors(SHAPE), bucket_bytes=4096, dtype=torch.float32)


def test_one_rank_gathers_its_own_weights() -> None:
    (table,) = entries(1, 1).values()
    local = {parameter_key(entry.chunk, entry.name): torch.randn(entry.shape) for entry in table}
    plan = plan_gather({0: table}, hf_tensors(SHAPE), bucket_bytes=2000, dtype=torch.float32)
    gathered = {name: tensor.clone() for name, tensor in gather_hf_tensors(local, plan, rank=0)}
    qkv = local["0:decoder.layers.0.self_attention.linear_qkv.weight"].view(2, 4, 4, 16)  # group, q q k v, row, column
    assert torch.equal(gathered["model.layers.0.self_attn.q_proj.weight"], qkv[:, :2].reshape(16, 16))
    assert torch.equal(gathered["model.layers.0.self_attn.k_proj.weight"], qkv[:, 2].reshape(8, 16))
    assert torch.equal(gathered["model.embed_tokens.weight"], local["0:embedding.word_embeddings.weight"][:21])


def test_chunks_of_a_virtual_pipeline_are_kept_apart() -> None:
    """Stage 0 has layers 0 and 2 as chunks 0 and 1, whose parameters have the same names."""
    shape = dataclasses.replace(SHAPE, num_layers=4)
    tables = {
        rank: list_parameters(
            shape,
            layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=rank, pipeline_size=2, virtual=2),
        )
        for rank in range(2)
    }
    plan = plan_gather(tables, hf_tensors(shape), bucket_bytes=4096, dtype=torch.float32)
    places = [
        [(part.rank, part.parameter) for part in plan.parts[f"model.layers.{layer}.mlp.down_proj.weight"]]
        for layer in range(4)
    ]
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    assert places == [[(0, f"0:{name}")], [(1, f"0:{name}")], [(0, f"1:{name}")], [(1, f"1:{name}")]]


@pytest.mark.parametrize(("backend", "place"), [("gloo", "cpu"), ("nccl", "cuda")])
def test_gloo_sends_from_host_memory(backend: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_backend", lambda: backend)
    assert sent_from(torch.device("cuda")).type == place
