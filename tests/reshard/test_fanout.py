"""Fan-outs of one block: senders and receivers agree on every hop, and everybody gets the block once."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.reshard.fanout import FANOUTS, Hop, Spread


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
        holders=draw(st.integers(1, 6)),
        min_share=draw(st.sampled_from((1, 1, 2, 7, 100))),
    )


def takers_of(spread: Spread) -> Iterator[int]:
    return (taker for takers in spread.nodes for taker in takers)


@given(spreads())
@settings(deadline=None, max_examples=200)
def test_senders_and_receivers_agree_on_every_hop(spread: Spread) -> None:
    sent = [hop for holder in range(spread.holders) for hop in spread.from_holder(holder)]
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
def test_holders_share_evenly_in_parts_worth_sending(spread: Spread) -> None:
    sent = [sum(hop.stop - hop.start for hop in spread.from_holder(n)) for n in range(spread.holders)]
    total = spread.num_copies * spread.num_elements
    used = [count for count in sent if count]
    assert sum(used) == total
    assert max(used) - min(used) <= 1
    assert len(used) == 1 or min(used) >= spread.min_share
    assert len(used) == max(1, min(spread.holders, total // spread.min_share))


def test_all_gather_by_hand() -> None:
    """12 elements, 3 nodes of 2 takers: a stripe of 2 per taker from the trainer, then round the ring of nodes."""
    spread = Spread(fanout="all_gather", num_elements=12, nodes=((0, 1), (2, 3), (4, 5)), holders=2, min_share=1)
    assert list(spread.from_holder(0)) == [Hop(0, 2, 0, 0, 0, 0), Hop(2, 4, 0, 1, 0, 2), Hop(4, 6, 0, 2, 0, 4)]
    assert list(spread.from_holder(1)) == [Hop(6, 8, 1, 3, 0, 6), Hop(8, 10, 1, 4, 0, 8), Hop(10, 12, 1, 5, 0, 10)]
    assert list(spread.from_taker(2)) == [
        Hop(0, 2, 2, 4, 2, 0),  # what node 0 sent on to node 1 goes on to node 2
        Hop(0, 2, 2, 3, 2, 0),
        Hop(4, 6, 2, 4, 1, 4),  # its own stripe
        Hop(4, 6, 2, 3, 1, 4),
        Hop(8, 10, 2, 3, 3, 8),  # node 2's stripe ends here: it has been to node 0 before
    ]


def test_relay_by_hand_through_nodes_of_unequal_sizes() -> None:
    """Three stripes of 4; the smaller node's two takers carry them in turn, so that neither brings all that is left."""
    spread = Spread(fanout="relay", num_elements=12, nodes=((0, 1, 2), (7, 8)), holders=1, min_share=1)
    assert list(spread.from_holder(0)) == [Hop(0, 4, 0, 0, 0, 0), Hop(4, 8, 0, 1, 0, 4), Hop(8, 12, 0, 2, 0, 8)]
    assert list(spread.to_taker(7)) == [Hop(0, 4, 0, 7, 1, 0), Hop(4, 8, 8, 7, 2, 4), Hop(8, 12, 2, 7, 1, 8)]
    assert list(spread.to_taker(8)) == [Hop(0, 4, 7, 8, 2, 0), Hop(4, 8, 1, 8, 1, 4), Hop(8, 12, 7, 8, 2, 8)]
