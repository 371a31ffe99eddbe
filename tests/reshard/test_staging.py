"""Memory that a worker shares with the policy's ranks of its host."""

import json
import os

import pytest
import torch

from megarl.reshard.signals import TransportError
from megarl.reshard.staging import OpenedMemory, SharedMemory
from tests.parallel.cuda_driver import cuda_stand_in

CPU = torch.device("cpu")


def test_host_memory_is_shared_by_a_plain_address() -> None:
    own = SharedMemory(5, torch.float32, CPU)
    assert all(type(value) in (int, str) for value in own.address.values())
    opened = OpenedMemory(json.loads(json.dumps(own.address)), torch.float32, owner="engine 0 worker 0")
    opened.data.copy_(torch.arange(5.0))
    assert torch.equal(own.data, torch.arange(5.0))
    own.close()
    own.close()
    opened.data[0] = 7.0  # what is mapped stays
    assert own.data[0] == 7.0
    with pytest.raises(TransportError, match="the memory of engine 0 worker 0 cannot be opened"):
        OpenedMemory(own.address, torch.float32, owner="engine 0 worker 0")


def test_beside_a_gpu_both_mappings_are_pinned_once_a_session() -> None:
    with cuda_stand_in() as driver:
        for _ in range(3):  # sessions: each after one that failed
            own = SharedMemory(1000, torch.float32, CPU)
            opened = OpenedMemory(own.address, torch.float32, owner="engine 0 worker 0")
            assert len(driver.registered) == 2
            assert set(driver.registered.values()) == {4000}
            opened.close()
            own.close()
            assert driver.registered == {}
        driver.launch()  # which raises what is pending


def test_memory_that_cannot_be_pinned_is_an_error_and_leaves_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    with cuda_stand_in() as driver:
        driver.limit = 2000
        with pytest.raises(TransportError, match=r"no memory for the 0 MiB that an engine worker receives \(CUDA does"):
            SharedMemory(1000, torch.float32, CPU)
        driver.limit = 5000
        own = SharedMemory(1000, torch.float32, CPU)
        with pytest.raises(TransportError, match="the memory of engine 0 worker 0: CUDA does not take"):
            OpenedMemory(own.address, torch.float32, owner="engine 0 worker 0")
        own.close()
        assert driver.registered == {}
        driver.launch()
    assert len(os.listdir("/proc/self/fd")) == len(before)
