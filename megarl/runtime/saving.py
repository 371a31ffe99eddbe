"""What the policy ranks say of their parts of a checkpoint, and what the driver makes of it.

A rank that could not save its part answers so and raises nothing: the others are still writing, and whoever hears the
first failure alone would remove what they write to.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from megarl.checkpoint.dist_writer import Written, finish_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import describe_model
from megarl.checkpoint.rank_saver import WrittenPart
from megarl.checkpoint.saved import SavedState, StagedNumbers
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.global_space import extra_state_objects
from megarl.parallel.grid import RankGrid

P = ParamSpec("P")
T = TypeVar("T")

_SHOWN_FAILURES = 4


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a rank's part of the work gave, or why there is none."""

    result: T | None
    failure: str | None = None


def outcome(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Outcome[T]:
    """Do the work; a CheckpointError is an outcome too."""
    try:
        return Outcome(work(*args, **kwargs))
    except CheckpointError as error:
        return Outcome(None, str(error))


def results(outcomes: Sequence[Outcome[T]]) -> list[T | None]:
    """In rank order, where all could do theirs. CheckpointError with what failed, each reason once."""
    failures = list(dict.fromkeys(found.failure for found in outcomes if found.failure is not None))
    if failures:
        more = f"\nand {len(failures) - _SHOWN_FAILURES} more ranks" if len(failures) > _SHOWN_FAILURES else ""
        raise CheckpointError("\n".join(failures[:_SHOWN_FAILURES]) + more)
    return [found.result for found in outcomes]


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint whose tensors are copied and being written."""

    path: Path
    numbers: StagedNumbers
    """Of all ranks."""


def numbers_of(staged: Sequence[Outcome[StagedNumbers]]) -> StagedNumbers:
    """The numbers that all ranks have in common. CheckpointError where one could not copy its state."""
    found = [numbers for numbers in results(staged) if numbers is not None]
    updates = {numbers.updates for numbers in found}
    steps = {numbers.optimizer_step for numbers in found if numbers.optimizer_step is not None}
    if len(updates) != 1 or len(steps) != 1:
        raise RuntimeError(f"the policy ranks have made {updates} updates, their optimizers {steps}; expected one each")
    return StagedNumbers(updates=updates.pop(), optimizer_step=steps.pop())


def merge_written(saving: Saving, written: Sequence[Outcome[WrittenPart]], config: RunConfig) -> SavedState:
    """Write what is said of all ranks' files together. CheckpointError where a rank could not write its part."""
    parts = [part for part in results(written) if part is not None]
    shape = read_model_shape(Path(config.model.path))
    numbers = asdict(saving.numbers)
    files = finish_dist_checkpoint(
        saving.path,
        [Written(**part.result) for part in parts],
        objects=extra_state_objects(shape),
        common={"megarl": numbers},
    )
    distributed = {"distributed_optimizer": config.policy.distributed_optimizer, "dtype": config.model.dtype}
    return SavedState(
        **numbers,
        layout={**RankGrid.of(config.parallel).sizes, **distributed},
        model=describe_model(shape),
        files=files,
        staged_bytes=max(part.staged_bytes for part in parts),
    )
