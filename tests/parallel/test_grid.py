"""The rank grid: hand-counted positions, and Megatron-core's own groups."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.base import ConfigError
from megarl.config.policy import ParallelConfig
from megarl.parallel.grid import AXES, EXPERT_AXES, GridPosition, RankGrid

sizes = st.sampled_from([1, 1, 2, 3])


def test_the_grid_of_a_configuration() -> None:
    grid = RankGrid.of(ParallelConfig(tensor=2, pipeline=3, world_size=24))
    assert grid == RankGrid(tensor=2, pipeline=3, data=4)
    assert grid.world_size == 24
    assert (grid.context, grid.expert, grid.sizes["expert_tensor"], grid.sizes["expert_data"]) == (1, 1, 2, 4)
    with pytest.raises(ConfigError, match="world_size 7 is not a multiple of tensor 2 x pipeline 1"):
        RankGrid.of(ParallelConfig(tensor=2, world_size=7))


def test_tensor_then_data_then_pipeline() -> None:
    """Two stages of three replicas of two tensor ranks."""
    grid = RankGrid(tensor=2, data=3, pipeline=2)
    places = [(at.tensor, at.data, at.pipeline) for at in map(grid.position, range(12))]
    assert places[:7] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (1, 2, 0), (0, 0, 1)]
    assert places[11] == (1, 2, 1)
    assert grid.data_group(1) == [2, 3, 8, 9]
    assert [grid.reporter(data) for data in range(3)] == [6, 8, 10]
    assert grid.groups("tensor") == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert grid.groups("data") == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert grid.groups("pipeline") == [[rank, rank + 6] for rank in range(6)]
    assert grid.groups("data", "tensor") == [list(range(6)), list(range(6, 12))]
    for rank in (-1, 12):
        with pytest.raises(ValueError, match=f"rank {rank} is outside the grid of 12 ranks"):
            grid.position(rank)


def test_context_and_experts_by_hand() -> None:
    """Two tensor, two context, two data ranks; experts over four of the eight, each whole on its rank."""
    grid = RankGrid(tensor=2, context=2, data=2, pipeline=1, expert=4, expert_tensor=1)
    assert grid.world_size == 8
    assert grid.groups("context") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert grid.groups("expert") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid.groups("expert_data") == [[rank, rank + 4] for rank in range(4)]
    # The ranks that hold the same of an expert are not those that hold the same of attention.
    assert grid.groups("context", "data") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert grid.position(6) == GridPosition(
        tensor=0, context=1, data=1, pipeline=0, expert_tensor=0, expert=2, expert_data=1
    )
    # A replica of the model, both halves of its responses' tokens.
    assert grid.data_group(1) == [4, 5, 6, 7]
    assert grid.reporter(1) == 4


def test_sizes_that_make_no_grid() -> None:
    with pytest.raises(ValueError, match=r"at least 1 rank, found \{'data': 0\}"):
        RankGrid(tensor=1, pipeline=1, data=0)
    with pytest.raises(
        ValueError, match="6 ranks of a pipeline stage are not a multiple of expert 2 x expert tensor 2"
    ):
        RankGrid(tensor=2, pipeline=2, data=3, expert=2)
    with pytest.raises(ValueError, match="expected axes all of"):
        RankGrid(tensor=1, pipeline=1, data=1).groups("data", "expert")


@settings(deadline=None)
@given(tensor=sizes, context=sizes, data=sizes, pipeline=sizes, expert=sizes, expert_tensor=st.none() | sizes)
def test_groups_are_those_of_megatron(tensor, context, data, pipeline, expert, expert_tensor) -> None:
    from megatron.core.parallel_state import RankGenerator

    width = tensor if expert_tensor is None else expert_tensor
    if tensor * context * data % (expert * width):
        return
    grid = RankGrid(
        tensor=tensor, context=context, data=data, pipeline=pipeline, expert=expert, expert_tensor=expert_tensor
    )
    order = "tp-cp-ep-dp-pp"  # the default of initialize_model_parallel
    dense = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order=order)
    left = tensor * context * data // (expert * width)
    experts = RankGenerator(tp=width, ep=expert, dp=left, pp=pipeline, cp=1, order=order)
    theirs = {"tensor": "tp", "context": "cp", "data": "dp", "pipeline": "pp"}
    of_experts = {"expert_tensor": "tp", "expert": "ep", "expert_data": "dp", "pipeline": "pp"}
    for axes, generator, names in ((AXES, dense, theirs), (EXPERT_AXES, experts, of_experts)):
        for count in (1, 2, 3):
            for chosen in itertools.combinations(axes, count):
                expected = generator.get_ranks("-".join(names[axis] for axis in chosen))
                assert grid.groups(*chosen) == expected, chosen


@settings(deadline=None)
@given(tensor=sizes, context=sizes, data=sizes, pipeline=sizes)
def test_rank_and_position_are_inverse(tensor, context, data, pipeline) -> None:
    grid = RankGrid(tensor=tensor, context=context, data=data, pipeline=pipeline)
    for rank in range(grid.world_size):
        at = grid.position(rank)
        assert grid.rank(tensor=at.tensor, context=at.context, data=at.data, pipeline=at.pipeline) == rank
        # Without experts' own sizes their tensor axis is the tensor axis.
        assert at.expert_tensor == at.tensor
    assert sorted(itertools.chain(*map(grid.data_group, range(data)))) == list(range(grid.world_size))


@settings(deadline=None)
@given(tensor=sizes, data=sizes, pipeline=sizes)
def test_axes_of_size_one_change_nothing(tensor, data, pipeline) -> None:
    grid = RankGrid(tensor=tensor, data=data, pipeline=pipeline)
    written = RankGrid(tensor=tensor, context=1, data=data, pipeline=pipeline, expert=1, expert_tensor=tensor)
    assert [grid.position(rank) for rank in range(grid.world_size)] == [
        written.position(rank) for rank in range(grid.world_size)
    ]
    assert grid.groups("context") == grid.groups("expert") == [[rank] for rank in range(grid.world_size)]
