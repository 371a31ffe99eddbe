"""Where the engines of a pool come from: actors that are made, or that a keeper has of the run before."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from megarl.config.run import RunConfig
from megarl.runtime.cluster import Placement, start_worker
from megarl.runtime.keeper import find_kept
from megarl.runtime.rollout_actor import RolloutActor
from megarl.runtime.shared_gpus import UNSET, GpuPlace, visible_gpus
from megarl.runtime.workers import Worker, WorkerName
from megarl.telemetry.run_directory import RunDirectory


class EngineStarts:
    """Of one run."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        placement: Placement,
        *,
        stop_token_ids: tuple[int, ...],
        gpus: Sequence[GpuPlace] = (),
    ) -> None:
        """gpus: of the policy ranks, where engines share them. KeeperLost where the engines that there are were not
        made for such a run."""
        self._config, self._directory, self._placement = config, directory, placement
        self._stop_token_ids, self._gpus, self._keeper = stop_token_ids, gpus, placement.keeper
        self.found = self._keeper is not None and self._keeper.has_engines
        """They run; another run had them."""
        if self._keeper is not None:
            self._keeper.check_shape(config, stop_token_ids)

    def first(self) -> list[Worker[RolloutActor]]:
        """All engines. On the event loop on which they are asked, as for `start`."""
        engines = range(self._config.rollout.engines)
        return [self._find(index) if self.found else self.start(index, stays=self.stay) for index in engines]

    def start(self, index: int, *, stays: bool = False) -> Worker[RolloutActor]:
        """A new one. stays: when the run has ended, unless its keeper is ended too."""
        options = self._placement.engine(index)
        if self._keeper is not None and stays:
            options |= self._keeper.options(index)
        variables = {} if self._keeper is None else self._keeper.marks
        if self._gpus:
            ranks = self._placement.plan.engine_ranks[index]
            variables |= {**UNSET, "CUDA_VISIBLE_DEVICES": visible_gpus(self._gpus, ranks)}
        name = self._name(index)
        arguments = self._config, index, self._stop_token_ids, name.log.parent
        return start_worker(name, RolloutActor, options, variables, *arguments)

    def _find(self, index: int) -> Worker[RolloutActor]:
        assert self._keeper is not None
        return Worker(self._name(index), self._keeper.find_engine(index))

    def _name(self, index: int) -> WorkerName:
        log = self._directory.log_path("rollout", index)
        return WorkerName("rollout", index, log if self._keeper is None else self._keeper.begin_log(log))

    @property
    def stay(self) -> bool:
        """Whether they may outlive the run."""
        return self._keeper is not None

    def doubt(self, reason: str) -> None:
        """They may not, after all."""
        if self._keeper is not None:
            self._keeper.doubt(reason)

    def leave(self) -> bool:
        """The run has ended well. Whether the next one may have the engines."""
        return self._keeper is not None and self._keeper.trust(self._config, self._stop_token_ids)

    def end_logs(self) -> None:
        """Nothing more of theirs is this run's."""
        if self._keeper is not None:
            self._keeper.end_logs()


def find_kept_engines(count: int) -> list[Worker[RolloutActor]]:
    """In a keeper: those that there are, of so many."""
    found = []
    for index in range(count):
        with suppress(ValueError):  # it never started
            found.append(Worker[RolloutActor](WorkerName("rollout", index, Path()), find_kept(index)))
    return found
