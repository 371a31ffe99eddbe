"""The helper itself: results by rank, the failing rank's own traceback, no process left behind."""

import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.dist.gloo import run_on_ranks


def _sum_ranks(offset: int) -> torch.Tensor:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return total + dist.get_rank()


def _fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier()


def _die_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    time.sleep(60)


def _sleep() -> None:
    time.sleep(60)


def test_results_come_by_rank() -> None:
    assert [result.item() for result in run_on_ranks(_sum_ranks, 2, 10)] == [21, 22]
    assert not multiprocessing.active_children()


def test_failure_names_its_rank_and_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 failed:(?s:.)*ValueError: the reason"):
        run_on_ranks(_fail_on_rank_one, 2)
    assert not multiprocessing.active_children()


def test_death_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="rank 1 died"):
        run_on_ranks(_die_on_rank_one, 2)
    assert not multiprocessing.active_children()


def test_timeout_kills() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0\] did not finish within 2"):
        run_on_ranks(_sleep, 1, timeout_s=2.0)
    assert not multiprocessing.active_children()
