"""What the loop needs from the outside. Ray shells, or anything else with these methods, can stand behind them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from megarl.checkpoint.saved import SavedState
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.policy.reports import GpuUse
from megarl.records import Rollout, SampleRequest, Score, TokenScores, TokenTrace
from megarl.rewards.item import RewardItem, Verdict
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.state import StateOwner

Arrived = Callable[[Sequence[int], Sequence[Rollout]], None]
"""Told, on the event loop, which requests have been answered, by their positions, and how."""


class Publisher(Protocol):
    """Who has the weights that engines sample from."""

    async def publish_weights(self, version: int) -> Metrics:
        """Send the weights to the connected engines as `version`; returns when all of them have it, checked.

        TransportError when it did not come whole: no engine installs it, and the session is over.
        """


class PolicyGroup(Publisher, Protocol):
    """All policy ranks as one."""

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        """Compute old (and reference) log-probs and entropies of every sample, and hold the batch to train on it.

        `hold` false only computes, and nothing under the reference: a batch that is held stays.
        """

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        """One optimizer update on mini-batch `index` of the held batch with the step's numbers; also what it did with
        the tokens of the samples whose id is in `traced`."""

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        """What `score` returns, by the forward of the step's only update, whose gradients wait for `apply_update`."""

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        """That update; returns what `train_mini_batch` returns."""

    async def reset_reference(self) -> None:
        """The reference becomes the current weights, and the optimizer's moments start anew."""

    async def give_way(self) -> Sequence[GpuUse | None]:
        """Where engines share the policy's GPUs: give back all that publishing, exporting and saving do not need. By
        rank, what is in use of its GPU then; None without one. Nothing where that is so already."""

    async def take_back(self) -> None:
        """All of it is there again, before anything else is asked of the policy. Nothing where it is there."""

    async def sft_update(self, shards: Sequence[MiniBatch]) -> UpdateResult:
        """One supervised update; `shards` are per data-parallel rank."""

    async def export_hf(self, path: str) -> None:
        """Write a Hugging Face checkpoint."""

    async def stage_checkpoint(self, path: str) -> None:
        """Copy what every rank must save and begin to write it into the directory `path`; returns when it is copied
        and training may go on. CheckpointError where that was not possible: nothing is being written then."""

    async def finish_checkpoint(self) -> SavedState:
        """What the ranks have written, when all have, and it is on the disk. CheckpointError, once nobody writes any
        more, where one could not within `checkpoint.timeout_s`."""

    async def load_checkpoint(self, path: str, *, weights_only: bool = False) -> None:
        """Every rank becomes what the run's checkpoint in `path` says, whatever layout wrote it.

        weights_only: a fresh optimizer, and the weights are the reference too. CheckpointError, naming file and tensor,
        where it is not of this model or damaged.
        """


class RolloutPool(Protocol):
    """All engines as one. Each of its methods raises EngineLost where an engine died or hangs and another is being
    started in its place; it has the policy's weights when `restore` has returned and a version was published over new
    connections."""

    policy_version: int
    """Of the weights that the engines sample from."""

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        """One rollout per request, in order; each has been told to `arrived` as soon as it was there. EngineLost when
        the others have answered all that they were asked."""

    async def receive_weights(self, version: int) -> None:
        """Begin to receive what the policy publishes as `version`, beside sampling."""

    async def adopt_weights(self, version: int) -> Metrics:
        """Install `version`, which the policy has published."""

    async def sleep(self) -> Sequence[Sequence[int] | None]:
        """Every engine's memory is given back, its weights are lost; one that cannot sleep is ended, and started again
        when `restore` is called. By engine, the bytes in use then on its workers' GPUs by whatever process; None of a
        lost one, and where engines have no GPU. Does not raise EngineLost."""

    async def wake_weights(self) -> None:
        """Engines that sleep have memory for a publication; those that do not are left alone."""

    async def wake_cache(self) -> None:
        """Engines that have adopted a publication since they slept may sample."""

    async def restore(self) -> int:
        """Return when every engine runs; how many were started again since the last call. Raises what became of one
        that cannot be started again, or was too often."""


class Scorer(StateOwner, Protocol):
    """The rewards. Its state is what it has learned at the start of the run."""

    async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
        """One verdict per item, in order, whatever the others are."""

    def conclude(self, items: Sequence[RewardItem], verdicts: Sequence[Verdict]) -> list[Score]:
        """The scores of all responses to a prompt."""
