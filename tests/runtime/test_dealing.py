"""Who gets what, and that results come back in the order in which things were asked for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.parallel.grid import RankGrid
from megarl.records import SampleRequest
from megarl.runtime.dealing import Deal, by_rank, deal_prompts, of_reporters, restore_order


def requests_of(prompts: str) -> list[SampleRequest]:
    return [SampleRequest(prompt=(ord(letter),), seed=index) for index, letter in enumerate(prompts)]


def test_the_samples_of_a_prompt_stay_together_and_prompts_take_turns() -> None:
    deals = deal_prompts(requests_of("ababcd"), engines=3)
    assert deals == [Deal(0, (0, 2, 5)), Deal(1, (1, 3)), Deal(2, (4,))]
    assert deal_prompts([], engines=2) == []


def test_results_come_back_in_the_order_of_the_requests() -> None:
    deals = deal_prompts(requests_of("abba"), engines=2)
    assert restore_order(deals, [["first", "fourth"], ["second", "third"]]) == ["first", "second", "third", "fourth"]
    for wrong in ([["first"], ["second", "third"]], [["first", "fourth"]]):
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            restore_order(deals, wrong)


@settings(deadline=None)
@given(prompts=st.text("abcde", max_size=20), engines=st.integers(1, 4))
def test_dealing_and_restoring_are_inverse(prompts: str, engines: int) -> None:
    requests = requests_of(prompts)
    deals = deal_prompts(requests, engines=engines)
    assert restore_order(deals, [[requests[index] for index in deal.indexes] for deal in deals]) == requests
    assert len({deal.engine for deal in deals}) == len(deals) == min(engines, len(set(prompts)))
    counts = [len({prompts[index] for index in deal.indexes}) for deal in deals]
    assert not counts or max(counts) - min(counts) <= 1


def test_every_rank_gets_its_replicas_part_and_the_reporters_are_heard() -> None:
    """Two tensor ranks, three replicas, two stages: the last stage begins at rank 6."""
    grid = RankGrid(tensor=2, data=3, pipeline=2)
    assert by_rank(grid, "xyz") == list("xxyyzzxxyyzz")
    assert of_reporters(grid, range(12)) == [6, 8, 10]


def test_a_reporter_that_returned_nothing_is_named() -> None:
    grid = RankGrid(tensor=1, data=3, pipeline=2)
    results = [None, None, None, "a", None, "c"]
    with pytest.raises(RuntimeError, match=r"policy ranks \[4\] report for their replicas, and returned nothing"):
        of_reporters(grid, results)
