"""What goes to which worker and in which order results come back; needs no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from megarl.parallel.grid import RankGrid
from megarl.records import SampleRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deal:
    """Requests that one engine samples together."""

    engine: int
    indexes: tuple[int, ...]
    """Of the requests, prompt by prompt."""


def deal_prompts(requests: Sequence[SampleRequest], *, engines: int) -> list[Deal]:
    """One deal for every engine that gets something. The samples of a prompt go to one engine, which shares their
    prefix; prompts, in order of first appearance, are dealt out in turn."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.prompt, []).append(index)
    hands: list[list[int]] = [[] for _ in range(engines)]
    for position, indexes in enumerate(groups.values()):
        hands[position % engines] += indexes
    return [Deal(engine, tuple(indexes)) for engine, indexes in enumerate(hands) if indexes]


def restore_order(deals: Sequence[Deal], results: Sequence[Sequence[T]]) -> list[T]:
    """One result per request, in the requests' order, from those of every deal in its order."""
    by_index = {
        index: result
        for deal, of_deal in zip(deals, results, strict=True)
        for index, result in zip(deal.indexes, of_deal, strict=True)
    }
    return [by_index[index] for index in range(len(by_index))]


def by_rank(grid: RankGrid, values: Sequence[T]) -> list[T]:
    """What each policy rank gets, in rank order, of one value per data-parallel replica."""
    return [values[grid.position(rank).data] for rank in range(grid.world_size)]


def of_reporters(grid: RankGrid, results: Sequence[T | None]) -> list[T]:
    """Of one result per policy rank, in rank order, those of the replicas' reporters, in replica order.

    RuntimeError when one of these has none.
    """
    reporters = [grid.reporter(data) for data in range(grid.data)]
    found = [result for rank in reporters if (result := results[rank]) is not None]
    if len(found) < len(reporters):
        silent = [rank for rank in reporters if results[rank] is None]
        raise RuntimeError(f"policy ranks {silent} report for their replicas, and returned nothing")
    return found
