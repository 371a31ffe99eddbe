"""A trainer of one rank in the test's own process: real sender, parameters in Megatron's layout, no Megatron."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megarl.models.families import read_model_shape
from megarl.models.layout import layout_of
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.regions import parameter_key
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import Offer, Transport
from megarl.reshard.tally import PublishReport
from megarl.rollout.engine import RolloutEngine


class Trainer:
    """Publishes Hugging Face weights to engines that it is connected to."""

    def __init__(
        self,
        path: Path,
        *,
        tensor: int = 1,
        transport: Transport = "shared_memory",
        timeout_s: float = 60.0,
        delta: bool = False,
    ) -> None:
        """`tensor`: ranks of the engines."""
        shape = read_model_shape(path)
        layout = layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=0, pipeline_size=1)
        self._entries = list_parameters(shape, layout)
        self._parameters = {parameter_key(entry.chunk, entry.name): torch.empty(entry.shape) for entry in self._entries}
        self._timeout_s = timeout_s
        self.offer = Offer(
            shape=shape,
            grid=RankGrid(tensor=1, pipeline=1, data=1),
            virtual=1,
            spec="local",
            tensors=hf_tensors(shape),
            dtype=torch.float32,
            engines=1,
            tensor=tensor,
            transport=transport,
            bucket_bytes=1 << 16,
            device="cpu",
            staging="host",
            delta=delta,
        )
        self.sender: WeightSender | None = None

    async def connect(self, engine: RolloutEngine) -> None:
        store, endpoint = serve_weights("127.0.0.1", timeout_s=self._timeout_s)
        self.close()

        def join() -> None:
            self.sender = WeightSender(endpoint, self.offer, self._parameters, rank=0, store=store)

        await asyncio.gather(asyncio.to_thread(join), engine.connect(endpoint))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Hold these weights."""
        for entry in self._entries:
            parameter = self._parameters[parameter_key(entry.chunk, entry.name)]
            fill_parameter(parameter, entry, lambda box: weights[box.tensor][box.slices])

    async def send(self, engine: RolloutEngine, version: int, weights: Mapping[str, Tensor]) -> PublishReport:
        """Everything up to the verdict: the engine has the weights and has not installed them."""
        self.load(weights)
        await engine.receive_weights(version)
        assert self.sender is not None
        return await asyncio.to_thread(self.sender.publish, version)

    async def publish(self, engine: RolloutEngine, version: int, weights: Mapping[str, Tensor]) -> PublishReport:
        """Send and install."""
        report = await self.send(engine, version, weights)
        await engine.adopt_weights(version)
        return report

    def close(self) -> None:
        if self.sender is not None:
            self.sender.close()
            self.sender = None
