"""The transfer plan: whatever the layouts, every element arrives where vLLM wants it, once, by every fan-out."""

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.boxes import Box
from megarl.models.layout import layout_of
from megarl.models.shape import ModelError, ModelShape
from megarl.parallel.grid import RankGrid
from megarl.reshard import plan as plan_module
from megarl.reshard.blocks import (
    Block,
    BlockKey,
    LayoutError,
    Unit,
    WantedBoxes,
    cut_source_blocks,
    cut_target_blocks,
    units_between,
)
from megarl.reshard.cost import choose_fanout
from megarl.reshard.fanout import FANOUTS, Fanout, Hop, Spread
from megarl.reshard.plan import PlanRequest, plan_taker, plan_trainer
from megarl.reshard.regions import Placed, Region, intersect, narrow, split_run, view_region
from megarl.reshard.sources import TrainerLayout
from megarl.reshard.topology import Topology, pack_nodes
from tests.models.shapes import make_shape
from tests.reshard.simulated_transfer import UNTOUCHED, Outcome, Publication, simulate
from tests.reshard.wanted import live_parameters, targets_of


def splits(shape: ModelShape, tensor: int) -> bool:
    """Does Megatron split this model over so many tensor ranks?"""
    try:
        layout_of(shape, tensor_rank=0, tensor_size=tensor, pipeline_rank=0, pipeline_size=1)
    except ModelError:
        return False
    return True


@st.composite
def model_shapes(draw: st.DrawFn, *, layers: int) -> ModelShape:
    """Small dense decoders. 6 heads give tensor sizes whose cuts do not lie on the engine's."""
    heads = draw(st.sampled_from((8, 6)))
    return make_shape(
        num_layers=layers,
        hidden_size=draw(st.sampled_from((8, 12))),
        ffn_size=draw(st.sampled_from((24, 48))),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([kv for kv in range(1, heads + 1) if heads % kv == 0])),
        head_dim=draw(st.sampled_from((2, 4))),
        vocab_size=draw(st.integers(40, 140)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@st.composite
def topologies(draw: st.DrawFn, shape: ModelShape, *, pipeline: int) -> Topology:
    """Grid and engines that take the model, packed into nodes or, now and then, scattered over them."""
    tensor = draw(st.sampled_from([size for size in range(1, 9) if splits(shape, size)]))
    kv_heads = shape.num_kv_heads
    engine_sizes = [
        size
        for size in (1, 2, 4, 8)  # divisors of vLLM's vocabulary padding
        if shape.num_heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    ]
    engine_tensor = draw(st.sampled_from(engine_sizes))
    packed = pack_nodes(
        grid=RankGrid(tensor=tensor, pipeline=pipeline, data=draw(st.integers(1, 4))),
        engines=draw(st.integers(1, 4)),
        tensor=engine_tensor,
        gpus_per_node=draw(st.sampled_from((1, 2, 4, 8))),
    )
    if draw(st.integers(0, 3)):
        return packed
    return dataclasses.replace(packed, taker_nodes=draw(st.permutations(packed.taker_nodes)))


@st.composite
def publications(draw: st.DrawFn) -> Publication:
    """A publication whose fan-out the plan chooses itself."""
    pipeline = draw(st.integers(1, 4))
    virtual = draw(st.integers(1, 2)) if pipeline > 1 else 1
    stages = pipeline * virtual
    shape = draw(model_shapes(layers=draw(st.sampled_from([n for n in range(2, 9) if n % stages == 0][:2]))))
    topology = draw(topologies(shape, pipeline=pipeline))
    spec = draw(st.sampled_from(("local", "te")))
    return Publication(
        layout=TrainerLayout(shape=shape, grid=topology.grid, virtual=virtual, spec=spec),
        topology=topology,
        bucket_bytes=draw(st.sampled_from((64, 100, 512, 4096))),
        fanout=None,
        own_head=shape.tied_embeddings and draw(st.booleans()),
    )


MIN_SHARES = st.sampled_from((4, 64, 1000, 1 << 22))
"""Bytes from which replicas and nodes share a block; 4 is one element, the last is the real one: nothing is shared."""


def carry_out(publication: Publication, min_share_bytes: int) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_MIN_SHARE_BYTES", min_share_bytes)
        return simulate(publication)


def check_arrival(publication: Publication, outcome: Outcome) -> None:
    """Every live parameter holds what vLLM would have loaded, written once; padding was left alone."""
    for number, taker in enumerate(outcome.takers):
        for parameter in publication.live[number % publication.topology.tensor]:
            expected = parameter.expected(outcome.tensors, UNTOUCHED)
            assert torch.equal(taker.live[parameter.name], expected), parameter.name
            assert torch.equal(taker.writes[parameter.name], (expected != UNTOUCHED).int()), parameter.name


def check_volume(publication: Publication, outcome: Outcome, *, shared: bool) -> None:
    """Takers receive the fewest elements possible; replicas send alike where blocks may be `shared` to the element."""
    grid, wanted = publication.topology.grid, publication.request.wanted
    for plan in outcome.plans[grid.world_size :]:
        taker = plan.peer - grid.world_size
        assert plan.received_over_bound == 1.0
        assert plan.bound_elements == wanted.elements(taker % publication.topology.tensor)
    for pipeline in range(grid.pipeline):
        for tensor in range(grid.tensor):
            ranks = [grid.rank(tensor=tensor, data=data, pipeline=pipeline) for data in range(grid.data)]
            replicas = [outcome.plans[rank] for rank in ranks]
            assert not any(plan.receives for plan in replicas)
            sent = [sum(message.num_elements for message in plan.sends) for plan in replicas]
            if shared:
                assert max(sent) - min(sent) <= len(replicas[0].blocks)  # a block's shares differ by one element


@pytest.mark.parametrize("fanout", [None, *FANOUTS])
@given(publication=publications(), min_share_bytes=MIN_SHARES)
@settings(max_examples=16, deadline=None)
def test_every_element_arrives_once(fanout: Fanout | None, publication: Publication, min_share_bytes: int) -> None:
    publication = dataclasses.replace(publication, fanout=fanout)
    outcome = carry_out(publication, min_share_bytes)
    check_arrival(publication, outcome)
    check_volume(publication, outcome, shared=min_share_bytes == publication.request.itemsize)
    # The wanted boxes were written without megarl's tables: together they are the checkpoint.
    everything = sum(tensor.numel() for tensor in outcome.tensors.values())
    assert publication.request.wanted.distinct_elements(range(publication.topology.tensor)) == everything


@given(publication=publications(), min_share_bytes=MIN_SHARES)
@settings(max_examples=8, deadline=None)
def test_fanouts_agree(publication: Publication, min_share_bytes: int) -> None:
    """The same bytes in the same parameters; only the way differs, and the trainer sends less the more is handed on."""
    from_trainer = {}
    live = None
    for fanout in FANOUTS:
        outcome = carry_out(dataclasses.replace(publication, fanout=fanout), min_share_bytes)
        found = [taker.live for taker in outcome.takers]
        live = live or found
        for mine, first in zip(found, live, strict=True):
            assert all(torch.equal(mine[name], first[name]) for name in first)
        from_trainer[fanout] = sum(message.num_elements for message in outcome.messages if message.depth == 0)
    assert from_trainer["direct"] >= from_trainer["node"] >= from_trainer["relay"] == from_trainer["all_gather"]
    assert from_trainer["direct"] == sum(plan.bound_elements for plan in outcome.plans)
    assert from_trainer["relay"] == sum(tensor.numel() for tensor in outcome.tensors.values())


def test_kv_heads_fewer_than_ranks_on_both_sides() -> None:
    """Megatron cuts inside a head, vLLM replicates heads: T = 8 and t = 8 of 2 key-value heads, everything shared."""
    shape = make_shape(
        num_layers=4, hidden_size=16, ffn_size=32, num_heads=8, num_kv_heads=2, head_dim=4, vocab_size=70, qkv_bias=True
    )
    topology = pack_nodes(grid=RankGrid(tensor=8, pipeline=2, data=2), engines=3, tensor=8, gpus_per_node=4)
    for fanout in FANOUTS:
        publication = Publication(
            layout=TrainerLayout(shape=shape, grid=topology.grid, virtual=2),
            topology=topology,
            bucket_bytes=256,
            fanout=fanout,
        )
        outcome = carry_out(publication, 4)
        check_arrival(publication, outcome)
        check_volume(publication, outcome, shared=True)


def test_a_rank_of_padding_only_wants_no_rows() -> None:
    """Vocabulary 50 is padded to 64 on 8 ranks of 8 rows: the last has none, on neither side."""
    shape = make_shape(num_heads=8, num_kv_heads=8, head_dim=2, vocab_size=50)
    topology = pack_nodes(grid=RankGrid(tensor=8, pipeline=1, data=1), engines=1, tensor=8, gpus_per_node=8)
    publication = Publication(
        layout=TrainerLayout(shape=shape, grid=topology.grid), topology=topology, bucket_bytes=64, fanout="direct"
    )
    assert publication.live[7][0].boxes == ()
    check_arrival(publication, carry_out(publication, 4))


# Requests and layouts that do not fit.


def request_for(shape: ModelShape, topology: Topology, **changes: Any) -> PlanRequest:
    targets = [
        targets_of(live_parameters(shape, rank=rank, tensor_size=topology.tensor)) for rank in range(topology.tensor)
    ]
    values: dict[str, Any] = {
        "wanted": WantedBoxes(targets),
        "topology": topology,
        "itemsize": 2,
        "bucket_bytes": 1 << 26,
    }
    return PlanRequest(**{**values, **changes})


@pytest.mark.parametrize(
    ("engine_has", "message"),
    [
        (
            {"tied_embeddings": False},
            r"lm_head\.weight\[0, 0\]\.\.\[11, 6\]: the engine wants 66 elements, the trainer holds 0 of them; "
            r"do both run the same model\?",
        ),
        (
            {"vocab_size": 13},
            r"model\.embed_tokens\.weight\[0, 0\]\.\.\[13, 6\]: the engine wants 78 elements, the trainer holds 66 ",
        ),
        ({"num_layers": 4}, r"model\.layers\.2\.self_attn\.q_proj\.weight.* holds 0 of them"),
        ({"qkv_bias": True}, r"model\.layers\.0\.self_attn\.q_proj\.bias\[0\]\.\.\[12\]: .* 12 .* holds 0 "),
    ],
)
def test_an_engine_that_wants_more_than_the_trainer_has(engine_has: dict[str, Any], message: str) -> None:
    trainer_shape = make_shape(tied_embeddings=True)
    engine_shape = dataclasses.replace(trainer_shape, **engine_has)
    topology = pack_nodes(grid=RankGrid(tensor=2, pipeline=1, data=1), engines=1, tensor=1, gpus_per_node=8)
    layout = TrainerLayout(shape=trainer_shape, grid=topology.grid)
    targets = targets_of(live_parameters(engine_shape, rank=0, tensor_size=1))
    with pytest.raises(LayoutError, match=message):
        plan_taker(
            request_for(engine_shape, topology),
            lambda pipeline, tensor: layout.placed(pipeline=pipeline, tensor=tensor),
            targets,
            taker=0,
        )


def test_a_request_checks_itself() -> None:
    topology = pack_nodes(grid=RankGrid(tensor=1, pipeline=1, data=1), engines=1, tensor=2, gpus_per_node=8)
    with pytest.raises(LayoutError, match="3 tensor ranks of an engine described, the topology has 2"):
        request_for(make_shape(), topology, wanted=WantedBoxes([[], [], []]))
    with pytest.raises(ValueError, match="a bucket of 3 bytes holds no element of 4"):
        request_for(make_shape(), topology, itemsize=4, bucket_bytes=3)


# Regions and blocks.


def test_split_run_by_hand() -> None:
    """Elements 5 to 22 of a [4, 6]: the end of row 0, rows 1 and 2 together, the beginning of row 3."""
    assert list(split_run((4, 6), 5, 22)) == [((0, 5), (1, 1)), ((1, 0), (2, 6)), ((3, 0), (1, 4))]
    assert list(split_run((4, 6), 7, 9)) == [((1, 1), (1, 2))]
    assert list(split_run((4, 6), 0, 24)) == [((0, 0), (4, 6))]
    assert list(split_run((9,), 2, 7)) == [((2,), (5,))]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.data())
@settings(deadline=None)
def test_split_run_covers_the_run_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    numbers = torch.arange(size).view(shape)
    parts = list(split_run(shape, start, stop))
    found = [numbers[tuple(slice(c, c + n) for c, n in zip(*part, strict=True))].flatten() for part in parts]
    assert torch.cat(found).tolist() == list(range(start, stop))
    assert len(parts) <= 2 * (len(shape) - 1) + 1


def test_intersect() -> None:
    left = Box("w", (0, 2), (4, 8))
    assert intersect(left, Box("w", (3, 0), (9, 4))) == Box("w", (3, 2), (4, 4))
    assert intersect(left, left) == left
    assert intersect(left, Box("w", (4, 2), (5, 8))) is None  # they touch
    assert intersect(left, Box("w", (0, 0), (4, 1))) is None


def test_narrow_keeps_strides_and_moves_the_offset() -> None:
    """A parameter that keeps the box transposed, with 7 elements before it: strides (1, 4) of a [4, 6] at 7."""
    box = Box("w", (10, 20), (14, 26))
    placed = Placed(box, Region("p", 7, (1, 4)))
    inner = Box("w", (11, 22), (13, 25))
    region = narrow(placed, inner)
    assert region == Region("p", 7 + 1 + 2 * 4, (1, 4))
    assert narrow(placed, box) == placed.region
    values = torch.arange(24).view(4, 6)
    memory = torch.cat([torch.full((7,), -1), values.T.flatten()])
    assert torch.equal(view_region(memory, region, (0, 0), inner.shape), values[1:3, 2:5])
    assert torch.equal(view_region(memory, region, (1, 1), (1, 2)), values[2:3, 3:5])
    # A parameter may itself be a view that begins inside its storage.
    longer = torch.cat([torch.zeros(3, dtype=torch.int64), memory])
    assert torch.equal(view_region(longer[3:], region, (0, 0), inner.shape), values[1:3, 2:5])


def block_of(sizes: list[int]) -> Block:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    units = [Unit(start, Box("w", (0,), (size,)), ()) for start, size in zip(starts, sizes, strict=True)]
    return Block(BlockKey(0, 0, (0,)), sum(sizes), tuple(units))


def test_units_between_by_hand() -> None:
    block = block_of([4, 6, 2])
    first, second, third = block.units
    assert list(units_between(block, 0, 12)) == [(first, 0, 4), (second, 0, 6), (third, 0, 2)]
    assert list(units_between(block, 4, 10)) == [(second, 0, 6)]
    assert list(units_between(block, 3, 11)) == [(first, 3, 4), (second, 0, 6), (third, 0, 1)]
    assert list(units_between(block, 5, 7)) == [(second, 1, 3)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_units_between_cover_the_range(sizes: list[int], data: st.DataObject) -> None:
    block = block_of(sizes)
    start = data.draw(st.integers(0, block.num_elements - 1))
    stop = data.draw(st.integers(start + 1, block.num_elements))
    found = [unit.start + n for unit, first, last in units_between(block, start, stop) for n in range(first, last)]
    assert found == list(range(start, stop))


def test_source_and_target_blocks_are_cut_alike() -> None:
    """2 key-value heads on 4 engine ranks: a trainer position has blocks for pairs of them, for each and for all."""
    shape = make_shape(num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=64)
    layout = TrainerLayout(shape=shape, grid=RankGrid(tensor=1, pipeline=1, data=1))
    targets = [targets_of(live_parameters(shape, rank=rank, tensor_size=4)) for rank in range(4)]
    wanted, placed = WantedBoxes(targets), layout.placed(pipeline=0, tensor=0)
    source = {block.key: block for block in cut_source_blocks(placed, wanted, pipeline=0, tensor=0)}
    assert [key.wanted_by for key in source] == [(0,), (0, 1), (0, 1, 2, 3), (1,), (2,), (2, 3), (3,)]
    for rank in range(4):
        target = cut_target_blocks(
            targets[rank], wanted, tensor_rank=rank, sources=lambda *_: placed, positions=[(0, 0)]
        )
        assert [block.key for block in target] == [key for key in source if rank in key.wanted_by]
        for block in target:
            ours = [(unit.start, unit.box) for unit in source[block.key].units]
            assert [(unit.start, unit.box) for unit in block.units] == ours
            assert block.num_elements == source[block.key].num_elements


# Fan-outs of one block.


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    """Takers with gaps in their numbers, in nodes of unequal sizes."""
    takers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=10, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, len(takers)), max_size=5)) | {len(takers)})
    nodes = tuple(tuple(takers[low:high]) for low, high in zip([0, *cuts], cuts, strict=False))
    return Spread(
        fanout=draw(st.sampled_from(FANOUTS)),
        num_elements=draw(st.integers(1, 60)),
        nodes=nodes,
        replicas=draw(st.integers(1, 6)),
        min_share=draw(st.sampled_from((1, 1, 2, 7, 100))),
    )


def takers_of(spread: Spread) -> Iterator[int]:
    return (taker for takers in spread.nodes for taker in takers)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_senders_and_receivers_agree_on_every_hop(spread: Spread) -> None:
    sent = [hop for replica in range(spread.replicas) for hop in spread.from_replica(replica)]
    sent += (hop for taker in takers_of(spread) for hop in spread.from_taker(taker))
    received = [hop for taker in takers_of(spread) for hop in spread.to_taker(taker)]
    assert sorted(sent) == sorted(received)
    assert len(set(sent)) == len(sent)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_every_taker_gets_the_block_once_from_those_that_have_it(spread: Spread) -> None:
    depth_of: dict[tuple[int, int], int] = {}
    hops = [hop for taker in takers_of(spread) for hop in spread.to_taker(taker)]
    for hop in sorted(hops, key=lambda hop: hop.depth):
        assert 0 <= hop.start < hop.stop <= spread.num_elements
        for element in range(hop.start, hop.stop):
            assert (hop.receiver, element) not in depth_of
            depth_of[hop.receiver, element] = hop.depth
            assert hop.depth == 0 or depth_of[hop.sender, element] < hop.depth
    assert len(depth_of) == spread.num_elements * len(list(takers_of(spread)))


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_a_node_gets_a_block_from_outside_once(spread: Spread) -> None:
    """Except directly: a taker for itself. The trainer sends `num_copies`, the rest comes from other nodes."""
    node_of = {taker: node for node, takers in enumerate(spread.nodes) for taker in takers}
    from_outside: Counter[int] = Counter()
    from_trainer = 0
    for taker in takers_of(spread):
        for hop in spread.to_taker(taker):
            if hop.depth == 0:
                from_trainer += hop.stop - hop.start
            if hop.depth == 0 or node_of[hop.sender] != node_of[taker]:
                from_outside[node_of[taker]] += hop.stop - hop.start
    assert from_trainer == spread.num_copies * spread.num_elements
    for node, takers in enumerate(spread.nodes):
        assert from_outside[node] == spread.num_elements * (len(takers) if spread.fanout == "direct" else 1)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_replicas_share_evenly_in_parts_worth_sending(spread: Spread) -> None:
    sent = [sum(hop.stop - hop.start for hop in spread.from_replica(n)) for n in range(spread.replicas)]
    total = spread.num_copies * spread.num_elements
    used = [count for count in sent if count]
    assert sum(used) == total
    assert max(used) - min(used) <= 1
    assert len(used) == 1 or min(used) >= spread.min_share
    assert len(used) == max(1, min(spread.replicas, total // spread.min_share))


def test_all_gather_by_hand() -> None:
    """12 elements, 3 nodes of 2 takers: a stripe of 2 per taker from the trainer, then round the ring of nodes."""
    spread = Spread(fanout="all_gather", num_elements=12, nodes=((0, 1), (2, 3), (4, 5)), replicas=2, min_share=1)
    assert list(spread.from_replica(0)) == [Hop(0, 2, 0, 0, 0, 0), Hop(2, 4, 0, 1, 0, 2), Hop(4, 6, 0, 2, 0, 4)]
    assert list(spread.from_replica(1)) == [Hop(6, 8, 1, 3, 0, 6), Hop(8, 10, 1, 4, 0, 8), Hop(10, 12, 1, 5, 0, 10)]
    assert list(spread.from_taker(2)) == [
        Hop(0, 2, 2, 4, 2, 0),  # what node 0 sent on to node 1 goes on to node 2
        Hop(0, 2, 2, 3, 2, 0),
        Hop(4, 6, 2, 4, 1, 4),  # its own stripe
        Hop(4, 6, 2, 3, 1, 4),
        Hop(8, 10, 2, 3, 3, 8),  # node 2's stripe ends here: it has been to node 0 before
    ]


def test_relay_by_hand_through_nodes_of_unequal_sizes() -> None:
    """Three stripes of 4; the smaller node's two takers carry them in turn, so that neither brings all that is left."""
    spread = Spread(fanout="relay", num_elements=12, nodes=((0, 1, 2), (7, 8)), replicas=1, min_share=1)
    assert list(spread.from_replica(0)) == [Hop(0, 4, 0, 0, 0, 0), Hop(4, 8, 0, 1, 0, 4), Hop(8, 12, 0, 2, 0, 8)]
    assert list(spread.to_taker(7)) == [Hop(0, 4, 0, 7, 1, 0), Hop(4, 8, 8, 7, 2, 4), Hop(8, 12, 2, 7, 1, 8)]
    assert list(spread.to_taker(8)) == [Hop(0, 4, 7, 8, 2, 0), Hop(4, 8, 1, 8, 1, 4), Hop(8, 12, 7, 8, 2, 8)]


# Nodes.


@pytest.mark.parametrize(
    ("trainer", "engines", "tensor", "gpus_per_node", "taker_nodes"),
    [
        (3, 2, 2, 4, [1, 1, 1, 1]),  # the free place on node 0 is too small for an engine
        (2, 3, 2, 4, [0, 0, 1, 1, 1, 1]),
        (4, 2, 3, 4, [1, 1, 1, 2, 2, 2]),
        (2, 1, 8, 4, [1, 1, 1, 1, 2, 2, 2, 2]),  # larger than a node: on whole nodes
        (2, 2, 2, 1, [2, 3, 4, 5]),
    ],
)
def test_pack_nodes(trainer: int, engines: int, tensor: int, gpus_per_node: int, taker_nodes: list[int]) -> None:
    grid = RankGrid(tensor=1, pipeline=1, data=trainer)
    topology = pack_nodes(grid=grid, engines=engines, tensor=tensor, gpus_per_node=gpus_per_node)
    assert topology.trainer_nodes == [rank // gpus_per_node for rank in range(trainer)]
    assert topology.taker_nodes == taker_nodes


def test_topology_numbers_and_names_its_peers() -> None:
    grid = RankGrid(tensor=2, pipeline=1, data=1)
    topology = pack_nodes(grid=grid, engines=3, tensor=2, gpus_per_node=4)  # nodes: trainer + engine 0, engines 1 + 2
    assert (topology.num_takers, topology.num_peers, topology.taker_peer(5)) == (6, 8, 7)
    assert topology.describe_peer(1) == "policy rank 1"
    assert topology.describe_peer(7) == "engine 2 worker 1"
    assert topology.takers_by_node((0, 1)) == ((0, 1), (2, 3, 4, 5))
    assert topology.takers_by_node((1,)) == ((1,), (3, 5))
    spanning = pack_nodes(grid=grid, engines=2, tensor=2, gpus_per_node=1)
    assert spanning.takers_by_node((0, 1)) == ((0,), (1,), (2,), (3,))
    with pytest.raises(ValueError, match="2 trainer ranks and 6 engine workers, found 2 and 5"):
        dataclasses.replace(topology, taker_nodes=[0] * 5)


# What the plan chooses, and what planning takes.


@functools.cache
def qwen_7b() -> ModelShape:
    """Qwen2.5-7B."""
    return make_shape(
        family="qwen2",
        num_layers=28,
        hidden_size=3584,
        ffn_size=18944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=152064,
        qkv_bias=True,
    )


@pytest.mark.parametrize(
    ("grid", "engines", "tensor", "gpus_per_node", "expected"),
    [
        ((4, 1, 1), 4, 1, 8, {"direct"}),  # everything on one node
        ((4, 2, 1), 1, 4, 8, {"direct"}),  # one engine that wants nothing twice: there is nothing to hand on
        ((4, 1, 8), 2, 1, 1, {"direct"}),  # few engines, each on its own node
        ((1, 1, 1), 7, 1, 8, {"node"}),  # one node too, but one rank would send everything seven times
        ((4, 2, 1), 4, 2, 8, {"node", "relay", "all_gather"}),  # engines share one node: all three are the same
        ((4, 2, 8), 64, 1, 8, {"node"}),  # as many trainer ranks as engines, eight of these to a node
        ((4, 2, 1), 64, 4, 8, {"relay", "all_gather"}),  # eight trainer ranks, 32 nodes of engines
        ((1, 1, 1), 64, 1, 1, {"relay", "all_gather"}),
    ],
)
def test_choose_fanout(
    grid: tuple[int, int, int], engines: int, tensor: int, gpus_per_node: int, expected: set[Fanout]
) -> None:
    topology = pack_nodes(
        grid=RankGrid(tensor=grid[0], pipeline=grid[1], data=grid[2]),
        engines=engines,
        tensor=tensor,
        gpus_per_node=gpus_per_node,
    )
    chosen = choose_fanout(request_for(qwen_7b(), topology).load, topology)
    assert chosen in expected


@pytest.mark.parametrize("fanout", [None, *FANOUTS])
def test_planning_time_does_not_grow_with_the_ranks(fanout: Fanout | None) -> None:
    """Qwen2.5-7B on 5,120 trainer and 5,120 engine ranks: a rank's plan takes hundredths of a second of its CPU.

    Measured below 0.1 s of process time on one core; the bound of 1 s leaves room for a busy machine.
    """
    grid = RankGrid(tensor=4, pipeline=2, data=640)
    topology = pack_nodes(grid=grid, engines=2560, tensor=2, gpus_per_node=8)
    layout = TrainerLayout(shape=qwen_7b(), grid=grid)
    request = request_for(qwen_7b(), topology, fanout=fanout)
    targets = targets_of(live_parameters(qwen_7b(), rank=1, tensor_size=2))
    start_s = time.process_time()
    trainer = plan_trainer(request, layout.placed(pipeline=1, tensor=2), rank=grid.rank(tensor=2, pipeline=1))
    trainer_s = time.process_time() - start_s
    taker = plan_taker(
        request, lambda pipeline, tensor: layout.placed(pipeline=pipeline, tensor=tensor), targets, taker=2561
    )
    taker_s = time.process_time() - start_s - trainer_s
    assert trainer.sends
    assert taker.received_over_bound == 1.0
    assert (trainer_s < 1.0, taker_s < 1.0) == (True, True), (trainer_s, taker_s)
