"""A session for publications: who has the weights, and the engines, meet and plan, each its own part."""

import asyncio
from typing import Protocol

from megarl.reshard.session import WeightEndpoint


class _Policy(Protocol):
    async def open_session(self) -> WeightEndpoint: ...

    async def join_session(self, endpoint: WeightEndpoint) -> None: ...


class _Engines(Protocol):
    async def connect(self, endpoint: WeightEndpoint) -> None: ...


async def connect(policy: _Policy, pool: _Engines) -> None:
    """Connect them, anew where they were connected. The first failure of either side is raised."""
    endpoint = await policy.open_session()
    await asyncio.gather(policy.join_session(endpoint), pool.connect(endpoint))
