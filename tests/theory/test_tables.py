"""The sentences and labels of the study, from numbers that are given."""

import math

from megarl.theory.monte_carlo import SlopeRow
from megarl.theory.results import TheoryResults
from megarl.theory.studies import StepStudy, SweepStudy, TrainingRow
from megarl.theory.sweep_charts import clip_label
from megarl.theory.tables import findings


def test_findings_judge_only_with_enough_seeds_and_beyond_noise() -> None:
    steps = StepStudy(rows=[], scatter_learning_rate=0.1, scatter=[], gradient_error=0.0)
    bad = SlopeRow(low=0.2, high=0.2, measured=2.0, standard_error=0.1, predicted=1.0, z=10.0, curvature=-1.0)

    def row(difference: float) -> TrainingRow:
        return TrainingRow(
            low=0.2,
            high=math.inf,
            entropy=0.5,
            control=0.5 - difference,
            difference=difference,
            standard_error=0.01,
            low_term=0.0,
            high_term=0.0,
            dropped=0.0,
            control_dropped=0.0,
            curve=[],
            control_curve=[],
        )

    def results(samples: list[SlopeRow], training: list[TrainingRow]) -> TheoryResults:
        sweep = SweepStudy(rows=[], grid=[])
        return TheoryResults(
            steps=steps, identities=[], counterexamples=[], sweep=sweep, samples=samples, training=training
        )

    lines = findings(results([bad], [row(0.05), row(-0.05), row(-0.02)]), seeds=8)
    assert lines[2] == "Sampled groups DISAGREE with the prediction: largest |z| 10.0 over 1 clip."
    assert "entropy higher" in lines[3]
    assert "entropy lower" in lines[4]
    assert "no effect beyond noise" in lines[5]
    assert "too few seeds to judge (3; 8 or more)" in findings(results([], [row(0.05)]), seeds=3)[-1]


def test_labels_of_bounds_that_are_off() -> None:
    assert clip_label(0.2, math.inf) == "low 0.2, high off"
    assert clip_label(1.0, 0.28) == "low off, high 0.28"
    assert clip_label(1.0, math.inf) == "no clip"
