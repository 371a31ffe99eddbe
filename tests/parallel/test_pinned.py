"""Host memory is registered once, and unregistered before it goes, whatever fails on the way."""

import gc

import pytest
import torch

from megarl.parallel.pinned import PinnedMemory, PinningError
from tests.parallel.cuda_driver import cuda_stand_in


def test_it_is_registered_until_it_is_closed() -> None:
    memory = torch.empty(100, dtype=torch.uint8)
    with cuda_stand_in() as driver:
        pinned = PinnedMemory(memory)
        assert driver.registered == {memory.data_ptr(): 100}
        pinned.close()
        pinned.close()
        assert driver.registered == {}
        assert driver.pending is None
        PinnedMemory(memory).close()  # the same address again


def test_nobody_has_to_close_it() -> None:
    with cuda_stand_in() as driver:
        pinned = PinnedMemory(torch.empty(100))
        assert len(driver.registered) == 1
        del pinned
        gc.collect()
        assert driver.registered == {}


def test_a_refusal_is_told_and_left_to_nobody_else() -> None:
    memory = torch.empty(3 << 20, dtype=torch.uint8)
    with cuda_stand_in() as driver:
        driver.limit = 1 << 20
        with pytest.raises(PinningError, match=r"does not take 3 MiB of host memory .* out of memory \(error 2\)"):
            PinnedMemory(memory)
        driver.launch()  # which raises what is pending


def test_memory_that_is_registered_is_not_taken_twice() -> None:
    memory = torch.empty(64)
    with cuda_stand_in():
        pinned = PinnedMemory(memory)
        with pytest.raises(PinningError, match="already mapped"):
            PinnedMemory(memory[16:])
        pinned.close()


def test_without_cuda_nothing_happens() -> None:
    pinned = PinnedMemory(torch.empty(3))
    pinned.close()
