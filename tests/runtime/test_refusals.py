"""Which placements are refused at once, and for which more nodes are waited for."""

import pytest

from megarl.planning.resources import Node, Workers
from megarl.planning.shortage import ScatteredError, ShortageError
from megarl.runtime.cluster import refuse_impossible


def make_workers(ranks: int, *, tensor: int = 4) -> Workers:
    return Workers(ranks=ranks, tensor=tensor, engines=0, engine_tensor=1, on_gpu=True)


def make_nodes(count: int, *, gpus: float = 6.0) -> list[Node]:
    """In use, all of them."""
    total = {"CPU": 64.0, "GPU": gpus}
    return [Node(f"n{at}", {"CPU": 64.0, "GPU": 0.0}, total=total) for at in range(count)]


def test_a_machine_of_its_own_does_not_grow() -> None:
    refuse_impossible(make_nodes(1), make_workers(4), expected=1, may_grow=False)  # others will have done
    with pytest.raises(ShortageError, match="found 64 CPU and 6 GPU free on 1 node"):
        refuse_impossible(make_nodes(1), make_workers(8), expected=1, may_grow=False)
    refuse_impossible([], make_workers(8), expected=1, may_grow=False)  # Ray has not said yet


def test_a_cluster_may_have_more_nodes_soon() -> None:
    refuse_impossible(make_nodes(2), make_workers(16), expected=2, may_grow=True)


def test_nodes_that_would_never_hold_a_group_are_refused_when_all_are_there() -> None:
    """Twelve GPUs on two nodes are no three groups of four."""
    with pytest.raises(ScatteredError):
        refuse_impossible(make_nodes(2), make_workers(12), expected=2, may_grow=True)
    refuse_impossible(make_nodes(2), make_workers(12), expected=3, may_grow=True)
