"""A checkpoint in the policy's place: its weights go to the engines of an evaluation, from the process that drives it.

    a session     opens the checkpoint, meets the engines' workers and plans, as policy rank 0 of a grid of one
    a version     reads box after box, packs and sends them; once, since nobody trains
    afterwards    nothing of the weights is in this process, and none of the workers has more of them than its model

Invariants: of the weights no more is in memory than the messages under way and a few rows; each chunk of the
checkpoint is compared with its CRC-32 in every session; the event loop goes on meanwhile.

Every worker is reached over gloo, on whatever node, so that a place is read once for all that take it. Shared memory
would be packed once a worker.
"""

import concurrent.futures
import logging
import threading
from asyncio import to_thread, wrap_future
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray.util
import torch.distributed as dist

from megarl.checkpoint.conversion import open_source
from megarl.checkpoint.hf_files import HF_DIRECTORY
from megarl.checkpoint.sources import Source
from megarl.checkpoint.staging import DTYPES
from megarl.config.run import RunConfig
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors
from megarl.parallel.grid import RankGrid
from megarl.reshard.sender import WeightSender, call_off, serve_weights
from megarl.reshard.session import Offer, WeightEndpoint
from megarl.reshard.signals import TransportError
from megarl.reshard.stored import StoredWeights
from megarl.reshard.tally import PublishReport
from megarl.runtime.merging import merge_publish_reports
from megarl.telemetry.metrics import Metrics

T = TypeVar("T")

_END_S = 10.0
"""For what is under way to end, once it is called off."""

_log = logging.getLogger(__name__)


class CheckpointPublisher:
    """Implements the loop's `Publisher`; sessions are made as `RayPolicyGroup` makes them."""

    def __init__(self, config: RunConfig, checkpoint: Path, *, host: str | None = None) -> None:
        """checkpoint: a torch.distributed.checkpoint with `hf/` in it. host: the address by which workers reach this
        process; None: Ray's of this node, once Ray runs."""
        self._config, self._checkpoint, self._host = config, checkpoint, host
        self._endpoint: WeightEndpoint | None = None
        self._store: dist.Store | None = None
        self._source: Source | None = None
        self._sender: WeightSender | None = None
        self._working: concurrent.futures.Future[Any] | None = None

    async def open_session(self) -> WeightEndpoint:
        """Let engines find the checkpoint; ends an earlier session. TransportError where nothing can listen here."""
        await self._end_session()
        host, timeout_s = self._host or ray.util.get_node_ip_address(), self._config.rollout.publish.timeout_s
        self._store, endpoint = await self._beside(partial(serve_weights, host, timeout_s=timeout_s))
        self._endpoint = endpoint
        return endpoint

    async def join_session(self, endpoint: WeightEndpoint) -> None:
        """Meet the engines, which connect meanwhile.

        Raises:
            CheckpointError: the checkpoint is not of its own config.json, or files are missing or cut short.
            TransportError: workers did not come, or do not fit.
        """
        await self._beside(partial(self._join, endpoint))

    async def publish_weights(self, version: int) -> Metrics:
        """Send the weights as `version`; returns when all workers have it, checked.

        Raises:
            CheckpointError: a file is damaged, or gone. No engine installs anything, and the session is over.
            TransportError: a worker failed, stalled or got changed bytes; likewise.
        """
        return merge_publish_reports([await self._beside(partial(self._publish, version))])

    async def close(self) -> None:
        """End what is under way, here and at the workers, and let all go. Never raises."""
        try:
            await self._end_session()
        except Exception as error:
            _log.warning("the session with the engines did not end in order: %s", error)

    def _join(self, endpoint: WeightEndpoint) -> None:
        self._source = open_source(self._checkpoint, self._checkpoint / HF_DIRECTORY)
        offer = offer_checkpoint(self._source.shape, self._config)
        weights = StoredWeights(self._source.read_box)
        self._sender = WeightSender(endpoint, offer, weights, rank=0, store=self._store)

    def _publish(self, version: int) -> PublishReport:
        if self._sender is None:
            raise RuntimeError("publish_weights before join_session")
        return self._sender.publish(version)

    async def _beside(self, work: Callable[[], T]) -> T:
        """Its result, from a thread that holds up no end of this process: it may wait for peers, or for a disk."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        done.set_running_or_notify_cancel()  # whoever is cancelled waits no more; the thread still tells how it ended
        self._working = done

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="megarl-checkpoint", daemon=True).start()
        return await wrap_future(done)

    async def _end_session(self) -> None:
        if self._working is not None and not self._working.done():
            if self._endpoint is not None:
                await to_thread(call_off, self._endpoint, "the evaluation ends")
            await to_thread(concurrent.futures.wait, [self._working], _END_S)
            if not self._working.done():
                raise TransportError(f"what it does has not ended {_END_S:g} s after it was called off")
        if self._sender is not None:
            self._sender.close()
        if self._source is not None:
            self._source.close()
        self._working = self._sender = self._source = self._store = self._endpoint = None


def offer_checkpoint(shape: ModelShape, config: RunConfig) -> Offer:
    """A checkpoint's weights, as a policy of one rank would publish them."""
    publish = config.rollout.publish
    return Offer(
        shape=shape,
        grid=RankGrid(tensor=1, pipeline=1, data=1),
        virtual=1,
        spec="local",
        tensors=hf_tensors(shape),
        dtype=DTYPES[config.model.dtype],
        engines=config.rollout.engines,
        tensor=config.rollout.tensor,
        transport="network",
        bucket_bytes=publish.bucket_mib << 20,
        device="cpu",
        staging="device" if publish.staging == "device" else "host",
        delta=False,
        once=True,
    )
