"""The policy ranks as Ray actors, and the group of them as the loop sees it."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ray
import ray.exceptions
import ray.util

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.rank_saver import WrittenPart
from megarl.checkpoint.saved import SavedState, StagedNumbers
from megarl.config.base import ConfigError
from megarl.config.cluster import Moved
from megarl.config.policy import OptimizerConfig
from megarl.config.run import RunConfig
from megarl.objective.token_sums import possible_rules
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.parallel.grid import RankGrid
from megarl.planning.turns import choose_moved
from megarl.policy.reports import GpuUse, MicroBatchScores, UpdateReport, scores_by_sample
from megarl.records import TokenScores, TokenTrace
from megarl.reshard.seal import new_secret
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.tally import PublishReport
from megarl.runtime.cluster import Placement, start_worker
from megarl.runtime.dealing import by_rank, of_reporters
from megarl.runtime.failures import Limit, call, call_together
from megarl.runtime.merging import merge_publish_reports, merge_reports
from megarl.runtime.roster import Roster
from megarl.runtime.saving import Outcome, Saving, merge_written, numbers_of, outcome, results
from megarl.runtime.shared_gpus import UNSET, GpuPlace, find_own_gpu, see_gpus, visible_gpus
from megarl.runtime.workers import BESIDE, LIVENESS, TellsStacks, Watch, Worker, WorkerName
from megarl.telemetry.logs import redirect_output, setup_logging
from megarl.telemetry.memory_phases import ByPhase, memory_metrics
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory

if TYPE_CHECKING:  # the driver imports no Megatron
    from megarl.policy.worker import MegatronWorker

T = TypeVar("T")

_log = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 20.0
_SAVE_GRACE_S = 60.0
"""The ranks see to checkpoint.timeout_s themselves, and end their writers then."""
_SESSION_WAITS = 6
"""Waits for peers in a row, of rollout.publish.timeout_s each, while a session for publications is made."""


class PolicyActor(TellsStacks):
    """Shell of one `MegatronWorker`: cheap to make, heavy in `setup`, no logic of its own.

    `answer` has a thread of its own, and so have the methods that wait for a checkpoint beside training; everything
    else runs in one other, in order.
    """

    def __init__(self, config: RunConfig, rank: int, logs: Path) -> None:
        redirect_output(logs / f"policy-{rank}.log")
        setup_logging("policy", rank, logs)
        self._config, self._rank = config, rank
        self._worker: MegatronWorker | None = None
        self._listener: socket.socket | None = None

    @ray.method(concurrency_group=LIVENESS)
    def answer(self) -> ProcessMark:
        """That this process runs, beside whatever else it does."""
        return ProcessMark.of(os.getpid())

    def rendezvous(self, port: int) -> tuple[str, int]:
        """Host of this process and a port on it where the ranks can meet; held from now on, so that nobody takes it."""
        from megarl.reshard.signals import TransportError, listen

        host = ray.util.get_node_ip_address()
        try:
            self._listener = listen(host, port)
        except TransportError as error:
            raise ConfigError(
                f"policy.master_port {port} on {host} is in use ({error.__cause__}); set another, or 0 for a free one"
            ) from error
        return host, self._listener.getsockname()[1]

    def find_gpu(self) -> GpuPlace:
        return find_own_gpu()

    def see_gpus(self, visible: str) -> None:
        see_gpus(visible)

    def setup(
        self, master: tuple[str, int], secret: str, optimizer: OptimizerConfig, total_updates: int, reference: bool
    ) -> None:
        from megarl.policy.process import RankPlace
        from megarl.policy.worker import MegatronWorker

        place = RankPlace(
            rank=self._rank,
            world_size=self._config.parallel.world_size,
            master_host=master[0],
            master_port=master[1],
            secret=secret,
            listener=self._listener,
        )
        self._worker = MegatronWorker(
            self._config, place, optimizer=optimizer, total_updates=total_updates, reference=reference
        )

    @property
    def _live(self) -> "MegatronWorker":
        assert self._worker is not None, "setup comes first"
        return self._worker

    def score(self, shard: BatchShard, *, hold: bool) -> list[list[MicroBatchScores]] | None:
        return self._live.score(shard, hold=hold)

    def train_mini_batch(self, index: int, controls: Controls, *, traced: range) -> UpdateReport | None:
        return self._live.train_mini_batch(index, controls, traced=traced)

    def score_and_differentiate(self, shard: BatchShard, controls: Controls) -> list[list[MicroBatchScores]] | None:
        return self._live.score_and_differentiate(shard, controls)

    def apply_update(self, *, traced: range) -> UpdateReport | None:
        return self._live.apply_update(traced=traced)

    def sft_update(self, batches: MiniBatch) -> UpdateReport | None:
        return self._live.sft_update(batches)

    def reset_reference(self) -> None:
        self._live.reset_reference()

    def give_way(self, moved: Sequence[Moved]) -> GpuUse | None:
        return self._live.give_way(moved)

    def take_back(self) -> None:
        self._live.take_back()

    def gpu_bytes(self) -> int | None:
        return self._live.gpu_bytes()

    def open_session(self) -> WeightEndpoint | None:
        return self._live.open_session()

    def join_session(self, endpoint: WeightEndpoint) -> None:
        self._live.join_session(endpoint)

    def publish_weights(self, version: int) -> tuple[PublishReport, ByPhase]:
        return self._live.publish_weights(version), self._live.memory()

    def export_hf(self, path: str) -> None:
        self._live.export_hf(path)

    def stage_checkpoint(self, path: str) -> Outcome[StagedNumbers]:
        return outcome(self._live.stage_checkpoint, path)

    @ray.method(concurrency_group=BESIDE)
    def finish_checkpoint(self) -> Outcome[WrittenPart]:
        return outcome(self._live.finish_checkpoint)

    @ray.method(concurrency_group=BESIDE)
    def abandon_checkpoint(self) -> None:
        self._live.abandon_checkpoint()

    def load_checkpoint(self, path: str, *, weights_only: bool) -> Outcome[None]:
        return outcome(self._live.load_checkpoint, path, weights_only=weights_only)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


class RayPolicyGroup:
    """All policy ranks as one; implements the loop's `PolicyGroup`."""

    def __init__(self, config: RunConfig, directory: RunDirectory, placement: Placement, roster: Roster) -> None:
        self._config, self._placement = config, placement
        self._grid = RankGrid.of(config.parallel)
        # One thread per rank: ranks share the cores where there is no GPU, and a GPU rank needs no more.
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(UNSET if placement.shares_gpus else {})}

        def start(rank: int) -> Worker[PolicyActor]:
            name = WorkerName("policy", rank, directory.log_path("policy", rank))
            options = placement.policy_rank(rank)
            return roster.add(start_worker(name, PolicyActor, options, environment, config, rank, directory.logs))

        self._workers = [start(rank) for rank in range(self._grid.world_size)]
        self._watch = Watch(self._workers, silence_s=config.cluster.worker_silence_s)
        self._moved: tuple[Moved, ...] | None = None
        """What gives way to engines; None until it was asked for."""
        self._limit = Limit(config.policy.call_timeout_s, "policy.call_timeout_s; raise it if the work is that long")

    async def find_gpus(self) -> list[GpuPlace]:
        """Which GPU every rank has, where engines share them; nothing else was asked of the ranks before. Else none."""
        if not self._placement.shares_gpus:
            return []
        asked = [worker.ask(PolicyActor.find_gpu) for worker in self._workers]
        places = await self._all(asked, doing="say which GPU it has", limit=self._start_limit)
        seeing = [
            worker.ask(PolicyActor.see_gpus, visible_gpus(places, [rank])) for rank, worker in enumerate(self._workers)
        ]
        await self._all(seeing, doing="see its node's GPUs", limit=self._start_limit)
        return places

    async def setup(self, *, optimizer: OptimizerConfig, total_updates: int, reference: bool) -> None:
        """Meet, build the model, read the weights."""
        first = self._workers[0]
        port = first.ask(PolicyActor.rendezvous, self._config.policy.master_port)
        master = await call(first, port, doing="find a port to meet at", limit=self._start_limit)
        secret = new_secret()
        asked = [
            worker.ask(PolicyActor.setup, master, secret, optimizer, total_updates, reference)
            for worker in self._workers
        ]
        await self._all(asked, doing="start", limit=self._start_limit)

    @property
    def _start_limit(self) -> Limit:
        return Limit(self._config.policy.start_timeout_s, "policy.start_timeout_s; raise it if reading takes that long")

    @property
    def _session_limit(self) -> Limit:
        waits_s = _SESSION_WAITS * self._config.rollout.publish.timeout_s
        return Limit(waits_s, f"{_SESSION_WAITS} waits of rollout.publish.timeout_s")

    async def _all(self, asked: Sequence[Awaitable[T]], *, doing: str, limit: Limit | None = None) -> list[T]:
        """What every rank was asked for, in rank order; the first failure is raised at once."""
        pairs = zip(self._workers, asked, strict=True)
        calls = [call(worker, reply, doing=doing, limit=limit or self._limit) for worker, reply in pairs]
        return await call_together(self._workers, calls)

    def _dealt(self, values: Sequence[T]) -> list[tuple[Worker[PolicyActor], T]]:
        """Every rank with what it gets of one value per data-parallel replica. Each value is put into the object store
        once: what is handed on is a reference, for which Ray gives the rank the value."""
        references: list[T] = [ray.put(value) for value in values]
        return list(zip(self._workers, by_rank(self._grid, references), strict=True))

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        # In threads: a batch may be gigabytes, and the event loop has workers to hear meanwhile.
        dealt = await asyncio.to_thread(self._dealt, shards)
        asked = [worker.ask(PolicyActor.score, shard, hold=hold) for worker, shard in dealt]
        results = await self._all(asked, doing="compute the log-probs of the step's responses")
        return await asyncio.to_thread(self._by_sample, shards, results)

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        dealt = await asyncio.to_thread(self._dealt, shards)
        asked = [worker.ask(PolicyActor.score_and_differentiate, shard, controls) for worker, shard in dealt]
        results = await self._all(asked, doing="compute the log-probs and gradients of the step's responses")
        return await asyncio.to_thread(self._by_sample, shards, results)

    def _by_sample(
        self, shards: Sequence[BatchShard], results: Sequence[list[list[MicroBatchScores]] | None]
    ) -> list[TokenScores]:
        return [
            scores
            for shard, of_shard in zip(shards, of_reporters(self._grid, results), strict=True)
            for scores in scores_by_sample(shard, of_shard)
        ]

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        workers = self._workers
        asked = [worker.ask(PolicyActor.train_mini_batch, index, controls, traced=traced) for worker in workers]
        return self._update_result(await self._all(asked, doing="make an update"))

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        asked = [worker.ask(PolicyActor.apply_update, traced=traced) for worker in self._workers]
        return self._update_result(await self._all(asked, doing="make an update"))

    def _update_result(self, results: Sequence[UpdateReport | None]) -> tuple[UpdateResult, list[TokenTrace]]:
        traces = [trace for report in of_reporters(self._grid, results) for trace in report.traces]
        return self._merge(results), traces

    async def reset_reference(self) -> None:
        asked = [worker.ask(PolicyActor.reset_reference) for worker in self._workers]
        await self._all(asked, doing="renew the reference")

    async def give_way(self) -> list[GpuUse | None]:
        if self._moved is None:
            asked = [worker.ask(PolicyActor.gpu_bytes) for worker in self._workers]
            sizes = await self._all(asked, doing="say how much memory its GPU has")
            self._moved = await asyncio.to_thread(choose_moved, self._config, gpu_bytes=_least(sizes))
            held = " and ".join(self._moved) or "nothing"
            _log.info("while engines sample, host memory holds %s of the policy", held)
        asked_way = [worker.ask(PolicyActor.give_way, self._moved) for worker in self._workers]
        return await self._all(asked_way, doing="give its memory to the engines")

    async def take_back(self) -> None:
        asked = [worker.ask(PolicyActor.take_back) for worker in self._workers]
        await self._all(asked, doing="take its memory back")

    async def sft_update(self, shards: Sequence[MiniBatch]) -> UpdateResult:
        asked = [worker.ask(PolicyActor.sft_update, shard) for worker, shard in self._dealt(shards)]
        return self._merge(await self._all(asked, doing="make an update"))

    def _merge(self, results: Sequence[UpdateReport | None]) -> UpdateResult:
        return merge_reports(of_reporters(self._grid, results), rules=possible_rules(self._config.objective))

    async def open_session(self) -> WeightEndpoint:
        """Let engines find the policy; ends an earlier session."""
        asked = [worker.ask(PolicyActor.open_session) for worker in self._workers]
        endpoint, *_ = await self._all(asked, doing="let the engines find it", limit=self._session_limit)
        assert endpoint is not None, "policy rank 0 opens it"
        return endpoint

    async def join_session(self, endpoint: WeightEndpoint) -> None:
        """Meet the engines, which connect meanwhile."""
        asked = [worker.ask(PolicyActor.join_session, endpoint) for worker in self._workers]
        await self._all(asked, doing="meet the engines' workers", limit=self._session_limit)

    async def publish_weights(self, version: int) -> Metrics:
        asked = [worker.ask(PolicyActor.publish_weights, version) for worker in self._workers]
        reports, memory = zip(*await self._all(asked, doing="publish the weights"), strict=True)
        return merge_publish_reports(reports) | memory_metrics("policy", memory)

    async def export_hf(self, path: str) -> None:
        asked = [worker.ask(PolicyActor.export_hf, path) for worker in self._workers]
        await self._all(asked, doing="export the checkpoint")

    async def stage_checkpoint(self, path: str) -> None:
        asked = [worker.ask(PolicyActor.stage_checkpoint, path) for worker in self._workers]
        staged = await self._all(asked, doing="copy its state for a checkpoint")
        try:
            self._saving = Saving(Path(path), numbers_of(staged))
        except CheckpointError:
            # Those that could copy theirs are writing.
            stopping = [worker.ask(PolicyActor.abandon_checkpoint) for worker in self._workers]
            await self._all(stopping, doing="stop writing a checkpoint")
            raise

    async def finish_checkpoint(self) -> SavedState:
        asked = [worker.ask(PolicyActor.finish_checkpoint) for worker in self._workers]
        limit = Limit(self._config.checkpoint.timeout_s + _SAVE_GRACE_S, "checkpoint.timeout_s")
        written = await self._all(asked, doing="write its part of a checkpoint", limit=limit)
        return await asyncio.to_thread(merge_written, self._saving, written, self._config)

    async def load_checkpoint(self, path: str, *, weights_only: bool = False) -> None:
        asked = [worker.ask(PolicyActor.load_checkpoint, path, weights_only=weights_only) for worker in self._workers]
        results(await self._all(asked, doing="read the checkpoint", limit=self._start_limit))

    def stop_watching(self) -> None:
        """Before Ray ends, however the run went."""
        self._watch.end()

    async def close(self) -> None:
        """Leave the process groups; a rank that cannot is left to Ray. Never raises."""
        self.stop_watching()
        asked = [asyncio.ensure_future(_closed(worker)) for worker in self._workers]
        done, _ = await asyncio.wait(asked, timeout=_CLOSE_TIMEOUT_S)
        for worker, task in zip(self._workers, asked, strict=True):
            if task not in done:
                task.cancel()
                _log.warning("%s did not end within %g s", worker, _CLOSE_TIMEOUT_S)


def _least(sizes: Sequence[int | None]) -> int | None:
    """None where there are no GPUs."""
    known = [size for size in sizes if size is not None]
    return min(known) if known else None


async def _closed(worker: Worker[PolicyActor]) -> None:
    try:
        await worker.ask(PolicyActor.close)
    except ray.exceptions.RayError as error:
        _log.info("%s had ended before it was closed: %s", worker, error)
