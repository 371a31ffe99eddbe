"""Who holds what: rows of ranks, and parts whose holders are not the data-parallel replicas of the rest."""

from collections import Counter

import pytest

from megarl.models.boxes import Box
from megarl.parallel.grid import RankGrid
from megarl.reshard.blocks import BlockKey, Holders, Holding, LayoutError, WantedBoxes
from megarl.reshard.fanout import FANOUTS, Fanout
from megarl.reshard.plan import PlanRequest, plan_engine_worker, plan_policy_rank
from megarl.reshard.regions import Placed, Region
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import pack_nodes
from tests.models.shapes import make_shape

ROWS = 20_000_000  # of two bytes: enough for holders to share
GRID = RankGrid(tensor=1, pipeline=1, data=4)


def whole(name: str) -> Placed:
    return Placed(Box(name, (0,), (ROWS,)), Region(f"0:{name}", 0, (1,)))


# Four ranks with the same dense part and two experts, one on the even ranks and one on the odd ones.
DENSE = Holding(Holders(first=0, step=1, num=4), (whole("dense"),))
EXPERTS = [Holding(Holders(first=expert, step=2, num=2), (whole(f"expert-{expert}"),)) for expert in range(2)]
HOLDINGS = [DENSE, *EXPERTS]


def make_request(fanout: Fanout | None, engines: int) -> tuple[PlanRequest, dict[Box, tuple[Region, ...]]]:
    targets = {piece.box: (piece.region,) for holding in HOLDINGS for piece in holding.placed}
    topology = pack_nodes(grid=GRID, engines=engines, tensor=1, gpus_per_node=2)
    request = PlanRequest(
        wanted=WantedBoxes([targets]), topology=topology, itemsize=2, bucket_bytes=1 << 21, fanout=fanout
    )
    return request, targets


@pytest.mark.parametrize("fanout", FANOUTS)
def test_an_experts_holders_share_its_sending_and_no_one_else(fanout: Fanout) -> None:
    request, targets = make_request(fanout, engines=3)
    policy_ranks = [plan_policy_rank(request, [DENSE, EXPERTS[rank % 2]], rank=rank) for rank in range(4)]
    workers = [plan_engine_worker(request, HOLDINGS, targets, worker=worker) for worker in range(3)]
    plans = [*policy_ranks, *workers]
    sent = Counter(message for plan in plans for message in plan.sends)
    assert sent == Counter(message for plan in plans for message in plan.receives)
    assert set(sent.values()) == {1}
    assert all(plan.received_over_bound == 1.0 for plan in workers)
    by_holders: dict[Holders, Counter[int]] = {holding.holders: Counter() for holding in HOLDINGS}
    for message in sent:
        if message.depth == 0:
            by_holders[message.block.holders][message.sender] += message.num_elements
    assert {holders: sorted(of) for holders, of in by_holders.items()} == {
        DENSE.holders: [0, 1, 2, 3],
        EXPERTS[0].holders: [0, 2],
        EXPERTS[1].holders: [1, 3],
    }
    for shares in by_holders.values():
        assert max(shares.values()) - min(shares.values()) <= 1


def test_one_rank_may_hold_several_parts() -> None:
    """Its dense part and its expert are blocks of their own, though it is the first holder of both."""
    request, _ = make_request("direct", engines=1)
    plan = plan_policy_rank(request, [DENSE, EXPERTS[0]], rank=0)
    assert [key.holders for key in plan.blocks] == [DENSE.holders, EXPERTS[0].holders]


def test_a_part_that_nobody_holds_is_missed() -> None:
    request, targets = make_request("direct", engines=1)
    with pytest.raises(LayoutError, match=r"expert-1\[0\]\.\.\[20000000\]: .* holds 0 of them"):
        plan_engine_worker(request, HOLDINGS[:2], targets, worker=0)


def test_a_rank_that_is_no_holder_plans_nothing() -> None:
    request, _ = make_request("direct", engines=1)
    with pytest.raises(ValueError, match="policy rank 1 is none of Holders"):
        plan_policy_rank(request, [EXPERTS[0]], rank=1)


def test_a_row_of_ranks() -> None:
    row = Holders(first=3, step=4, num=3)
    assert [row.rank(index) for index in range(3)] == [3, 7, 11]
    assert [row.index_of(rank) for rank in (3, 7, 11)] == [0, 1, 2]
    for rank in (-1, 4, 15):
        with pytest.raises(ValueError, match=f"policy rank {rank} is none of"):
            row.index_of(rank)


@pytest.mark.parametrize(("tensor", "pipeline", "data"), [(1, 1, 1), (2, 2, 3), (4, 1, 2), (1, 2, 4)])
def test_a_dense_layout_is_held_by_its_data_replicas(tensor: int, pipeline: int, data: int) -> None:
    grid = RankGrid(tensor=tensor, pipeline=pipeline, data=data)
    layout = PolicyLayout(shape=make_shape(num_layers=2, num_heads=4, num_kv_heads=4), grid=grid)
    holdings = list(layout.holdings())
    assert len(holdings) == tensor * pipeline
    for rank in range(grid.world_size):
        position = grid.position(rank)
        (held,) = layout.held_by(rank)
        assert held == holdings[position.pipeline * tensor + position.tensor]
        assert held.holders.index_of(rank) == position.data
    ranks = [holding.holders.rank(index) for holding in holdings for index in range(holding.holders.num)]
    assert sorted(ranks) == list(range(grid.world_size))


def test_a_key_crosses_processes() -> None:
    key = BlockKey(Holders(3, 4, 3), (0, 2))
    assert BlockKey.from_json(key.as_json()) == key
