"""What cluster.colocate asks of a configuration."""

from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.config.cluster import find_allocator_problem
from megarl.config.run import RunConfig
from megarl.config.warnings import find_warnings
from tests.config.text import SMALL, load_small, problems_of, write_config

ON = "cluster.colocate=true"
EIGHT = ("parallel.world_size=8",)


@pytest.mark.parametrize(
    ("overrides", "engines"),
    [
        ((), 8),
        (("rollout.tensor=2",), 4),
        (("rollout.tensor=8",), 1),
        (("rollout.tensor=3",), 2),
        (("rollout.engines=1",), 1),
    ],
)
def test_engines_fill_the_gpus_of_the_policy_where_their_number_is_absent(
    overrides: tuple[str, ...], engines: int, tmp_path: Path
) -> None:
    config = load_small(tmp_path, ON, *EIGHT, *overrides)
    assert config.rollout.engines == engines
    assert config.gpus_needed == 8


def test_without_it_nothing_is_filled(tmp_path: Path) -> None:
    config = load_small(tmp_path, "parallel.world_size=4")
    assert (config.rollout.engines, config.gpus_needed) == (1, 5)


def test_what_was_filled_is_kept_in_what_is_written(tmp_path: Path) -> None:
    config = load_small(tmp_path, ON, *EIGHT)
    again = RunConfig.model_validate(config.model_dump(exclude_none=True))
    assert again == config


def test_values_that_are_wrong_are_told_by_their_own_checks(tmp_path: Path) -> None:
    assert any(
        "parallel.world_size" in text for text in problems_of(write_config(tmp_path), ON, "parallel.world_size='x'")
    )
    assert any("rollout" in text for text in problems_of(write_config(tmp_path), ON, "rollout=3"))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            (ON, *EIGHT, "rollout.engines=3", "rollout.tensor=4"),
            "rollout.engines 3 x tensor 4 take 12 GPUs, but with cluster.colocate they share the 8 of the policy "
            "(parallel.world_size); lower one of the two, or leave rollout.engines out",
        ),
        (
            (ON, *EIGHT, "cluster.gpus_per_node=4"),
            "parallel.world_size 8 needs 8 GPUs, cluster.nodes x gpus_per_node = 4",
        ),
        (
            (ON, *EIGHT, "rollout.publish.staging='device'"),
            'rollout.publish.staging "device" keeps a second copy of an engine\'s weights on a GPU that '
            'cluster.colocate shares; set it to "host", or on one node to "none"',
        ),
        (
            ("rollout.publish.staging='none'",),
            'rollout.publish.staging "none" lets engines read the weights of a policy that rests meanwhile, which it '
            'does with cluster.colocate alone; set it to "host" or "device"',
        ),
        (
            (ON, *EIGHT, "rollout.publish.staging='none'", "rollout.publish.transport='network'"),
            'rollout.publish.staging "none" reads the policy\'s memory within one node, and a network is for several; '
            'set transport to "shared_memory" or staging to "host"',
        ),
        (
            (ON, *EIGHT, "cluster.offload=['optimizer', 'reference']"),
            'cluster.offload names "reference", but the objective has no KL, so there is none; leave it out',
        ),
        (
            ("cluster.offload=[]",),
            "cluster.offload says what moves while engines share the policy's GPUs; set cluster.colocate = true",
        ),
    ],
)
def test_what_does_not_go_together(overrides: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    (found,) = problems_of(write_config(tmp_path, SMALL), *overrides)
    assert found.partition(" [override")[0] == problem


def test_weights_are_read_where_they_lie_on_one_node(tmp_path: Path) -> None:
    none = "rollout.publish.staging='none'"
    assert load_small(tmp_path, ON, *EIGHT, none).rollout.publish.staging == "none"
    two_nodes = (ON, none, *EIGHT, "cluster.nodes=2")
    (found,) = problems_of(write_config(tmp_path, SMALL), *two_nodes)
    assert 'transport "shared_memory" works within one node' in found


def test_gpus_that_no_engine_shares_are_told(tmp_path: Path) -> None:
    (text,) = find_warnings(load_small(tmp_path, ON, *EIGHT, "rollout.tensor=3"))
    assert text == (
        "rollout.engines 2 x tensor 3 share 6 of the policy's 8 GPUs (cluster.colocate); the others idle while engines "
        "sample"
    )
    assert find_warnings(load_small(tmp_path, ON, *EIGHT)) == []
    assert find_warnings(load_small(tmp_path, *EIGHT, "cluster.nodes=2", "rollout.publish.transport='network'")) == []


def test_what_may_move(tmp_path: Path) -> None:
    assert load_small(tmp_path, ON, "cluster.offload=['optimizer']").cluster.offload == ["optimizer"]
    with pytest.raises(ConfigError, match=r"cluster\.offload"):
        load_small(tmp_path, ON, "cluster.offload=['weights']")


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
@pytest.mark.parametrize("value", ["expandable_segments:True", "max_split_size_mb:512, expandable_segments:1"])
def test_segments_that_cannot_be_given_back_are_refused(name: str, value: str) -> None:
    problem = find_allocator_problem({name: value})
    assert problem is not None
    assert problem.startswith(f"{name} has expandable_segments on: vLLM's sleeping allocator cannot give such memory")


def test_an_allocator_whose_memory_cannot_be_shared_is_refused() -> None:
    problem = find_allocator_problem({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512, backend:cudaMallocAsync"})
    assert problem is not None
    assert problem.startswith("PYTORCH_ALLOC_CONF has backend:cudaMallocAsync: vLLM's sleeping allocator does not work")


@pytest.mark.parametrize("value", ["", "expandable_segments:False", "max_split_size_mb:512", "backend:native"])
def test_other_settings_of_the_allocator_are_not(value: str) -> None:
    assert find_allocator_problem({"PYTORCH_CUDA_ALLOC_CONF": value}) is None
    assert find_allocator_problem({}) is None
