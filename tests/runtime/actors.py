"""Actors that stand for workers. They import little: a process of theirs is up in a second or two."""

import asyncio
import ctypes
import os
import threading
import time

import ray

from megarl.runtime.shared_gpus import GpuPlace, find_own_gpu
from megarl.runtime.workers import LIVENESS, TellsStacks
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.stacks import hear_stack_requests


class Sleeper(TellsStacks):
    """Does one thing at a time, and answers beside it, as a policy rank."""

    @ray.method(concurrency_group=LIVENESS)
    def answer(self) -> ProcessMark:
        return ProcessMark.of(os.getpid())

    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return threading.get_ident()

    def hear(self) -> None:
        hear_stack_requests()

    def hold(self, seconds: float) -> None:
        """As `sleep`, and nothing in this process can run Python meanwhile."""
        library = ctypes.PyDLL(None)
        left = int(seconds)
        while left:  # a signal ends a sleep early
            left = library.sleep(left)

    def fail(self, seconds: float) -> None:
        time.sleep(seconds)
        raise RuntimeError("the peer did not come")


class Seeing(TellsStacks):
    """Says which GPUs it has, as Ray tells it, and which CUDA would show it."""

    @ray.method(concurrency_group=LIVENESS)
    def answer(self) -> ProcessMark:
        return ProcessMark.of(os.getpid())

    def find_gpu(self) -> GpuPlace:
        return find_own_gpu()

    def visible(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


class Busy(TellsStacks):
    """Takes requests side by side, as an engine; Ray holds back those over its limit."""

    @ray.method(concurrency_group=LIVENESS)
    async def answer(self) -> ProcessMark:
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
        return ProcessMark.of(os.getpid())

    async def sleep(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.sleep(seconds)

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)
