"""Fan-outs of one block: senders and receivers agree on every hop, and everybody gets the block once."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.reshard.fanout import FANOUTS, Hop, Spread


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    """Workers with gaps in their numbers, in nodes of unequal sizes."""
    workers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=10, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, len(workers)), max_size=5)) | {len(workers)})
    nodes = tuple(tuple(workers[low:high]) for low, high in zip([0, *cuts], cuts, strict=False))
    return Spread(
        fanout=draw(st.sampled_from(FANOUTS)),
        num_elements=draw(st.integers(1, 60)),
        nodes=nodes,
        holders=draw(st.integers(1, 6)),
        min_share=draw(st.sampled_from((1, 1, 2, 7, 100))),
    )


def workers_of(spread: Spread) -> Iterator[int]:
    return (worker for workers in spread.nodes for worker in workers)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_senders_and_receivers_agree_on_every_hop(spread: Spread) -> None:
    sent = [hop for holder in range(spread.holders) for hop in spread.from_holder(holder)]
    sent += (hop for worker in workers_of(spread) for hop in spread.from_worker(worker))
    received = [hop for worker in workers_of(spread) for hop in spread.to_worker(worker)]
    assert sorted(sent) == sorted(received)
    assert len(set(sent)) == len(sent)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_every_worker_gets_the_block_once_from_those_that_have_it(spread: Spread) -> None:
    depth_of: dict[tuple[int, int], int] = {}
    hops = [hop for worker in workers_of(spread) for hop in spread.to_worker(worker)]
    for hop in sorted(hops, key=lambda hop: hop.depth):
        assert 0 <= hop.start < hop.stop <= spread.num_elements
        for element in range(hop.start, hop.stop):
            assert (hop.receiver, element) not in depth_of
            depth_of[hop.receiver, element] = hop.depth
            assert hop.depth == 0 or depth_of[hop.sender, element] < hop.depth
    assert len(depth_of) == spread.num_elements * len(list(workers_of(spread)))


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_a_node_gets_a_block_from_outside_once(spread: Spread) -> None:
    """Except directly: a worker for itself. The policy sends `num_copies`, the rest comes from other nodes."""
    node_of = {worker: node for node, workers in enumerate(spread.nodes) for worker in workers}
    from_outside: Counter[int] = Counter()
    from_policy = 0
    for worker in workers_of(spread):
        for hop in spread.to_worker(worker):
            if hop.depth == 0:
                from_policy += hop.stop - hop.start
            if hop.depth == 0 or node_of[hop.sender] != node_of[worker]:
                from_outside[node_of[worker]] += hop.stop - hop.start
    assert from_policy == spread.num_copies * spread.num_elements
    for node, workers in enumerate(spread.nodes):
        assert from_outside[node] == spread.num_elements * (len(workers) if spread.fanout == "direct" else 1)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_holders_share_evenly_in_parts_worth_sending(spread: Spread) -> None:
    sent = [sum(hop.stop - hop.start for hop in spread.from_holder(n)) for n in range(spread.holders)]
    total = spread.num_copies * spread.num_elements
    used = [count for count in sent if count]
    assert sum(used) == total
    assert max(used) - min(used) <= 1
    assert len(used) == 1 or min(used) >= spread.min_share
    assert len(used) == max(1, min(spread.holders, total // spread.min_share))


def test_all_gather_by_hand() -> None:
    """12 elements, 3 nodes of 2 workers: a stripe of 2 per worker from the policy, then round the ring of nodes."""
    spread = Spread(fanout="all_gather", num_elements=12, nodes=((0, 1), (2, 3), (4, 5)), holders=2, min_share=1)
    assert list(spread.from_holder(0)) == [Hop(0, 2, 0, 0, 0, 0), Hop(2, 4, 0, 1, 0, 2), Hop(4, 6, 0, 2, 0, 4)]
    assert list(spread.from_holder(1)) == [Hop(6, 8, 1, 3, 0, 6), Hop(8, 10, 1, 4, 0, 8), Hop(10, 12, 1, 5, 0, 10)]
    assert list(spread.from_worker(2)) == [
        Hop(0, 2, 2, 4, 2, 0),  # what node 0 sent on to node 1 goes on to node 2
        Hop(0, 2, 2, 3, 2, 0),
        Hop(4, 6, 2, 4, 1, 4),  # its own stripe
        Hop(4, 6, 2, 3, 1, 4),
        Hop(8, 10, 2, 3, 3, 8),  # node 2's stripe ends here: it has been to node 0 before
    ]


def test_relay_by_hand_through_nodes_of_unequal_sizes() -> None:
    """Three stripes of 4; the smaller node's two workers carry them in turn: neither brings all that is left."""
    spread = Spread(fanout="relay", num_elements=12, nodes=((0, 1, 2), (7, 8)), holders=1, min_share=1)
    assert list(spread.from_holder(0)) == [Hop(0, 4, 0, 0, 0, 0), Hop(4, 8, 0, 1, 0, 4), Hop(8, 12, 0, 2, 0, 8)]
    assert list(spread.to_worker(7)) == [Hop(0, 4, 0, 7, 1, 0), Hop(4, 8, 8, 7, 2, 4), Hop(8, 12, 2, 7, 1, 8)]
    assert list(spread.to_worker(8)) == [Hop(0, 4, 7, 8, 2, 0), Hop(4, 8, 1, 8, 1, 4), Hop(8, 12, 7, 8, 2, 8)]
