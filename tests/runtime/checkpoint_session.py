"""A checkpoint's publisher and stand-ins for engine workers, a process each."""

import asyncio
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.config.run import RunConfig
from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.row_sums import compile_sums
from megarl.reshard.session import WeightEndpoint
from megarl.runtime.checkpoint_publisher import CheckpointPublisher
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.resident_memory import peak_resident_bytes
from tests.reshard.wanted import live_parameters, targets_of

HOST = "127.0.0.1"


def make_config(*, dtype: str = "bfloat16", **rollout: Any) -> RunConfig:
    """Messages of 1 MiB."""
    return RunConfig.model_validate(
        {
            "name": "eval",
            "model": {"path": "unused", "dtype": dtype},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "reasoning_gym"}},
            "rollout": {"publish": {"bucket_mib": 1, "timeout_s": 20.0}, **rollout},
        }
    )


class Member:
    """Process 0 publishes; worker r is process r + 1."""

    def __init__(self, number: int) -> None:
        self._worker = number - 1
        self._publisher: CheckpointPublisher | None = None
        self._receiver: WeightReceiver | None = None

    def serve(self, config: RunConfig, checkpoint: Path) -> WeightEndpoint:
        """Open a session, anew where there was one."""
        if self._publisher is None:
            self._publisher = CheckpointPublisher(config, checkpoint, host=HOST)
        return asyncio.run(self._publisher.open_session())

    def join(self, endpoint: WeightEndpoint) -> None:
        if self._worker < 0:
            assert self._publisher is not None
            asyncio.run(self._publisher.join_session(endpoint))
            return
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = WeightReceiver(
            endpoint,
            worker=self._worker,
            record=lambda offer: targets_of(
                live_parameters(offer.shape, rank=self._worker % offer.tensor, tensor_size=offer.tensor)
            ),
        )

    def publish(self) -> Metrics | None:
        """Version 0; the publisher's metrics."""
        if self._worker < 0:
            assert self._publisher is not None
            return asyncio.run(self._publisher.publish_weights(0))
        assert self._receiver is not None
        self._receiver.begin()
        self._receiver.await_version(0)
        return None

    def differing(self, weights: Path, dtype: torch.dtype) -> list[str]:
        """A worker's parameters that are not, to the bit, what a Hugging Face checkpoint has for it, in its dtype."""
        assert self._receiver is not None
        offer, differing = self._receiver.offer, []
        rank = self._worker % offer.tensor
        with open_hf_checkpoint(weights) as checkpoint:
            for live in live_parameters(offer.shape, rank=rank, tensor_size=offer.tensor):
                expected, found = (torch.zeros(live.shape, dtype=dtype) for _ in range(2))
                for box, region in live.regions():
                    view = expected.as_strided(box.shape, region.strides, region.offset)
                    view.copy_(checkpoint.read(box))
                self._receiver.fill(live.name, found)
                if not torch.equal(expected.view(torch.uint8), found.view(torch.uint8)):
                    differing.append(live.name)
        return differing

    def begin_memory(self) -> None:
        """From here on `grown_bytes` counts; what is compiled once is not counted."""
        compile_sums()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = peak_resident_bytes()

    def grown_bytes(self) -> int:
        """The most memory that this process had more than when it began to count."""
        return peak_resident_bytes() - self._before

    def leave(self) -> None:
        if self._publisher is not None:
            asyncio.run(self._publisher.close())
        if self._receiver is not None:
            self._receiver.close()
