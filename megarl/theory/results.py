"""All studies of `megarl theory`, one after the other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from megarl.config.theory import TheoryConfig
from megarl.theory.counterexamples import CASES, Worked, work_case
from megarl.theory.identities import Identity, study_identities
from megarl.theory.monte_carlo import SlopeRow
from megarl.theory.studies import (
    WORKED_DELTA,
    Advance,
    StepStudy,
    SweepStudy,
    TrainingRow,
    study_samples,
    study_steps,
    study_sweep,
    study_training,
)

Stage = Callable[[str, int], AbstractContextManager[Advance]]
"""Entered with a study's name and its number of parts; what it gives is called after each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TheoryResults:
    """What the studies found."""

    steps: StepStudy
    identities: list[Identity]
    counterexamples: list[Worked]
    sweep: SweepStudy
    samples: list[SlopeRow]
    training: list[TrainingRow]
    """Empty where that study was left out."""

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists and numbers, under the fields' names."""
        return asdict(self)


def compute_results(config: TheoryConfig, stage: Stage) -> TheoryResults:
    """Carry out every study; `stage` is told how far it is."""
    with stage("step sizes", len(config.learning_rates)) as advance:
        steps = study_steps(config, advance)
    identities = study_identities(config)
    cases = [work_case(case, WORKED_DELTA) for case in CASES]
    bounds = config.sweep
    with stage("bounds", len(bounds.low) + len(bounds.high) + len(bounds.low) * len(bounds.high)) as advance:
        sweep = study_sweep(config, advance)
    with stage("sampled groups", len(config.monte_carlo.clips)) as advance:
        samples = study_samples(config, advance)
    with stage("trainings", 2 * len(config.multi_step.clips) * config.multi_step.rollouts) as advance:
        training = study_training(config, advance)
    return TheoryResults(
        steps=steps,
        identities=identities,
        counterexamples=cases,
        sweep=sweep,
        samples=samples,
        training=training,
    )
