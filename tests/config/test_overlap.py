"""What may go on beside computing, and what the default means."""

from pathlib import Path

import pytest

from megarl.config.policy import PolicyConfig
from tests.config.text import SMALL, problems_of, write_config


@pytest.mark.parametrize(
    ("overlap", "data_ranks", "nccl", "wanted"),
    [
        ("auto", 4, True, "gradients"),
        ("auto", 1, True, "off"),
        ("auto", 4, False, "off"),
        ("all", 4, False, "all"),
        ("gradients", 1, False, "gradients"),
        ("off", 4, True, "off"),
    ],
)
def test_what_it_means(overlap: str, data_ranks: int, nccl: bool, wanted: str) -> None:
    policy = PolicyConfig.model_validate({"overlap": overlap})
    assert policy.overlap_of(data_ranks=data_ranks, nccl=nccl) == wanted


def test_a_bucket_is_megatrons_own_unless_it_is_set() -> None:
    assert [PolicyConfig().bucket_of(data_ranks=ranks) for ranks in (8, 64)] == [40_000_000, 64_000_000]
    assert PolicyConfig.model_validate({"bucket_elements": 7}).bucket_of(data_ranks=64) == 7


def test_what_does_not_go_together(tmp_path: Path) -> None:
    path = write_config(tmp_path, SMALL)
    (found,) = problems_of(path, "policy.overlap='all'", "policy.distributed_optimizer=false")
    assert found.partition(" [override")[0] == (
        'policy.overlap "all" gathers the weights that the distributed optimizer has split, and '
        'policy.distributed_optimizer is false; set it to true, or overlap to "gradients"'
    )
    (found,) = problems_of(path, "policy.overlap='off'", "policy.bucket_elements=1000")
    assert 'policy.bucket_elements cuts what overlaps, and policy.overlap is "off"; leave it out' in found
