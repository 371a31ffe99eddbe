"""Whose GPUs they are: engines and policy have their own, or take turns on the same (cluster.colocate).

    engines   | sample |sleep|                            |weights wake|receive, adopt|caches wake| sample
    policy    | has given way |take back|score, update|give way|       |publish       |

Invariants: the policy works only while every engine sleeps, an engine only while the policy has given way; and no
engine samples before every one has adopted what the policy published: asleep they have lost what they sampled from.

What goes wrong: an engine that dies or hangs asleep, or while it is put to sleep, is started again when the policy has
given way, before the publication, which is for all engines then; one that is lost while it wakes or adopts likewise,
and the publication is repeated from the policy (`controller.publication`). Where the policy cannot give its memory, or
take it back, or an engine keeps too much of it, the run ends with that, and goes on from its newest checkpoint in fresh
processes where it saves itself.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from megarl.controller.protocols import PolicyGroup, RolloutPool
from megarl.controller.reporting import StepReporter
from megarl.policy.reports import GpuUse
from megarl.rollout.failures import ResidualMemoryError
from megarl.telemetry.metrics import Metrics, declared

GIB = 1 << 30


class Turns(Protocol):
    """Who has the GPUs."""

    shared: bool
    """Engines lose their weights between two publications."""

    async def start(self) -> None:
        """The engines have started, the policy has not."""

    async def to_policy(self) -> Metrics:
        """Return when the policy may work: all responses have come."""

    async def to_publication(self, *, anew: bool = False) -> None:
        """Return when engines may receive: the policy has given way, and all have memory for weights. anew: also those
        that were started again."""

    async def make_room(self) -> None:
        """Return when engines may be started: the policy has given way."""

    async def to_engines(self) -> None:
        """Return when engines may sample: all have adopted a publication."""


class OwnGpus:
    """Nobody waits for a turn."""

    shared = False

    async def start(self) -> None: ...

    async def to_policy(self) -> Metrics:
        return {}

    async def to_publication(self, *, anew: bool = False) -> None: ...

    async def make_room(self) -> None: ...

    async def to_engines(self) -> None: ...


class SharedGpus:
    """Policy and engines take turns."""

    shared = True

    def __init__(
        self, policy: PolicyGroup, pool: RolloutPool, reporter: StepReporter, *, residual: "ResidualMemory"
    ) -> None:
        self._policy, self._pool, self._reporter, self._residual = policy, pool, reporter, residual

    async def start(self) -> None:
        self._residual.note_alone(await self._pool.sleep())

    async def to_policy(self) -> Metrics:
        with self._reporter.phase("sleep"):
            residual = self._residual.check(await self._pool.sleep())
            await self._policy.take_back()
        return {} if residual is None else declared({"memory/asleep_max_gib": residual / GIB})

    async def make_room(self) -> None:
        self._residual.note_policy(await self._policy.give_way())

    async def to_publication(self, *, anew: bool = False) -> None:
        with self._reporter.phase("wake"):
            await self.make_room()
            if anew:
                # One that was started again has everything, and others may have come halfway.
                await self._pool.sleep()
            await self._pool.wake_weights()

    async def to_engines(self) -> None:
        with self._reporter.phase("wake"):
            await self._pool.wake_cache()


class ResidualMemory:
    """What sleeping engines keep of the GPUs, by what is in use of them and what the policy has of that.

    Of other processes' memory CUDA tells no more than the sum. An engine's is what was in use when it slept alone,
    before the policy came; the policy's what came then, and what its allocator has reserved more or less since.
    """

    def __init__(self, sharing: Sequence[Sequence[int]], *, limit_bytes: float) -> None:
        """sharing: by engine, the policy ranks whose GPUs its workers have. limit_bytes: of a GPU."""
        self._sharing, self._limit = sharing, limit_bytes
        self._alone: dict[int, int] = {}
        """By rank, in use on its GPU before the policy came."""
        self._policy: dict[int, int] = {}
        """Of the policy, when it had given way first."""
        self._reserved: dict[int, int] = {}
        self._first_reserved: dict[int, int] = {}

    def note_alone(self, asleep: Sequence[Sequence[int] | None]) -> None:
        """asleep: `RolloutPool.sleep`, before the policy has started."""
        self._alone = self._by_rank(asleep)

    def note_policy(self, uses: Sequence[GpuUse | None]) -> None:
        """uses: `PolicyGroup.give_way`. The first time, engines sleep as they did when they were alone."""
        for rank, use in enumerate(uses):
            if use is None or rank not in self._alone:
                continue
            if rank not in self._policy:
                self._policy[rank] = use.used - self._alone[rank]
                self._first_reserved[rank] = use.reserved
            self._reserved[rank] = use.reserved

    def check(self, asleep: Sequence[Sequence[int] | None]) -> int | None:
        """Bytes that the engine keeps which keeps most of a GPU; None where there are no GPUs.

        ResidualMemoryError where that is more than it may.
        """
        kept: Mapping[int, int] = {
            rank: used - self._policy[rank] - (self._reserved[rank] - self._first_reserved[rank])
            for rank, used in self._by_rank(asleep).items()
            if rank in self._policy
        }
        if not kept:
            return None
        rank = max(kept, key=kept.__getitem__)
        if kept[rank] > self._limit:
            engine = next(index for index, ranks in enumerate(self._sharing) if rank in ranks)
            raise ResidualMemoryError(
                f"engine {engine} sleeps and keeps {kept[rank] / GIB:.1f} GiB of the GPU of policy rank {rank}, which "
                f"needs it now; rollout.asleep_gib allows {self._limit / GIB:g}, and when it slept first it was "
                f"{self._alone[rank] / GIB:.1f}. What grows is what vLLM's sleep does not give back: CUDA graphs "
                "(rollout.vllm_overrides.enforce_eager = true has none), NCCL's buffers, or a leak; where the policy "
                "has room for it, raise rollout.asleep_gib"
            )
        return max(0, kept[rank])

    def _by_rank(self, asleep: Sequence[Sequence[int] | None]) -> dict[int, int]:
        return {
            rank: used
            for ranks, of_engine in zip(self._sharing, asleep, strict=True)
            for rank, used in zip(ranks, of_engine or (), strict=False)
        }
