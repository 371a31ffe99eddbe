"""The tables and sentences of `megarl theory`, made from the studies' numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from megarl.theory.counterexamples import Worked
from megarl.theory.identities import Identity
from megarl.theory.monte_carlo import SlopeRow
from megarl.theory.results import TheoryResults
from megarl.theory.studies import WORKED_DELTA, StepStudy, SweepRow, SweepStudy, TrainingRow
from megarl.theory.sweep_charts import bound_label

SEEDS_TO_JUDGE = 8
"""Fewer trainings give a standard error that is itself too uncertain."""
DOES_NOT_SAY = (
    "That clip-high lowers entropy is not a theorem. Its term q (E[Q] - E[Q|Y]) can have either sign: see the case "
    '"dominant token rises", and the share of pairs where it is positive. That clip-high lowers entropy in language '
    "models, and outweighs clip-low at low = high = 0.2, was observed there (arXiv 2509.26114, figures 1 to 4); a "
    "small softmax does not decide it.",
    'Nor is it a theorem that clip-low raises entropy: see the case "dominant token falls". It does wherever every '
    "token it acts on has -log pi >= H, as rare tokens have.",
    "The theorems are about one step. Any finite step also loses entropy at second order, without a clip too; only the "
    "difference to a control without clip bias is the clip's doing.",
    "The signs of a training are measured, not derived: it logs entropy/clip_low_contribution and "
    "entropy/clip_high_contribution.",
)


@dataclass(frozen=True, kw_only=True)
class TheoryTable:
    """One table, as text; the terminal and the page show the same."""

    title: str
    caption: str
    columns: Sequence[str]
    """Headings; those that start with "<" are aligned left and shown without it."""
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Lines below the table."""


def build_tables(results: TheoryResults) -> list[TheoryTable]:
    """Every table, in the order in which they are shown."""
    tables = [
        step_table(results.steps),
        identity_table(results.identities),
        case_table(results.counterexamples),
        sweep_table(results.sweep),
        sample_table(results.samples),
    ]
    return [*tables, training_table(results.training)] if results.training else tables


def step_table(study: StepStudy) -> TheoryTable:
    """Predicted against exact, and the order of what is left."""
    return TheoryTable(
        title="Predicted and exact entropy change",
        caption="medians over random pairs, nats. order: 2 where the prediction is the whole first order, 1 where it "
        "is not",
        columns=("<formula", "learning rate", "|predicted|", "|exact|", "|exact - predicted|", "order"),
        rows=[
            (
                row.theorem if row.theorem != "under pi_old" else "Theorem 1 under pi_old",
                f"{row.learning_rate:g}",
                f"{row.predicted:.4e}",
                f"{row.exact:.4e}",
                f"{row.remainder:.2e}",
                "" if row.order is None else f"{row.order:.2f}",
            )
            for row in sorted(study.rows, key=lambda row: row.theorem)
        ],
    )


def identity_table(identities: Sequence[Identity]) -> TheoryTable:
    """The other statements, each beside a form that is wrong."""

    def cell(measure: str, value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}" if measure == "difference" else f"{value:.2f}"

    return TheoryTable(
        title="Other statements, and near misses",
        caption="difference: the largest to the exact change or to automatic differentiation, rounding where it is "
        "true; order: 2 where it is the whole first order; |z|: below 4 where the mean is right. T: length of an "
        "episode; m: 1 where the clip leaves the gradient",
        columns=("<statement", "<measure", "value", "<near miss", "value"),
        rows=[
            (
                identity.statement,
                identity.measure,
                cell(identity.measure, identity.value),
                identity.wrong_form,
                cell(identity.measure, identity.wrong_value),
            )
            for identity in identities
        ],
    )


def case_table(cases: Sequence[Worked]) -> TheoryTable:
    """The named policies, with the reason of their signs."""
    return TheoryTable(
        title="Signs, case by case",
        caption=f"millinats at eta c w = {WORKED_DELTA:g}. X, Y: the tokens clip-low and clip-high act on. PG: policy "
        "gradient (Theorem 1), NG: natural gradient (Theorem 2)",
        columns=("<case", "<X", "<Y", "PG predicted", "PG exact", "NG predicted", "NG exact"),
        rows=[
            (
                case.name,
                ",".join(map(str, case.low_set)) or "-",
                ",".join(map(str, case.high_set)) or "-",
                *(
                    f"{1e3 * change:+.4f}"
                    for change in (case.pg_predicted, case.pg_exact, case.ng_predicted, case.ng_exact)
                ),
            )
            for case in cases
        ],
        notes=[f"{case.name}: {case.meaning}" for case in cases],
    )


def sweep_table(study: SweepStudy) -> TheoryTable:
    """Each bound alone."""
    return TheoryTable(
        title="One bound alone",
        caption="means over random pairs. p: probability of the clipped tokens; CL, CH: p (E[Q] - E[Q|clipped]); > 0: "
        "share of pairs where the theorem's bracket is positive; changes of one step in millinats",
        columns=(
            *("<bound", "p or q", "CL or CH", "± error", "> 0", "PG predicted", "PG exact"),
            *("> 0", "NG predicted", "NG exact"),
        ),
        rows=[_sweep_cells(row) for row in study.rows],
    )


def _sweep_cells(row: SweepRow) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    return (
        f"{row.side} {bound_label(row.side, row.bound)}",
        f"{row.probability:.4f}",
        f"{row.pg_term:+.5f}",
        f"{row.pg_error:.5f}",
        share(row.pg_positive),
        f"{1e3 * row.pg_predicted:+.4f}",
        f"{1e3 * row.pg_exact:+.4f}",
        share(row.ng_positive),
        f"{1e3 * row.ng_predicted:+.4f}",
        f"{1e3 * row.ng_exact:+.4f}",
    )


def sample_table(rows: Sequence[SlopeRow]) -> TheoryTable:
    """Sampled groups against the prediction."""
    return TheoryTable(
        title="Sampled groups with coin-flip rewards",
        caption="entropy change per learning rate, millinats: slope measured from sampled actions with the group-mean "
        "baseline, E[max(A, 0)] mean(CL - CH) predicted. |z| below 4 is agreement. curvature: second order",
        columns=("<low", "<high", "measured", "± error", "predicted", "z", "curvature"),
        rows=[
            (
                bound_label("low", row.low),
                bound_label("high", row.high),
                f"{1e3 * row.measured:+.4f}",
                f"{1e3 * row.standard_error:.4f}",
                f"{1e3 * row.predicted:+.4f}",
                "-" if row.z is None else f"{row.z:+.2f}",
                f"{1e3 * row.curvature:+.3f}",
            )
            for row in rows
        ],
    )


def training_table(rows: Sequence[TrainingRow]) -> TheoryTable:
    """Whole trainings against their controls."""
    return TheoryTable(
        title="Whole trainings on coin-flip rewards",
        caption="final entropy relative to the initial one. control: drops about as many tokens, by a coin instead "
        "of by the sign of A. CL, CH: logged terms, millinats; dropped: share of tokens",
        columns=(
            "<low",
            "<high",
            "with clip",
            "control",
            "difference",
            "± error",
            "z",
            "CL",
            "CH",
            "dropped",
            "control",
        ),
        rows=[
            (
                bound_label("low", row.low),
                bound_label("high", row.high),
                f"{row.entropy:.4f}",
                f"{row.control:.4f}",
                f"{row.difference:+.4f}",
                f"{row.standard_error:.4f}",
                f"{row.difference / row.standard_error:+.1f}" if row.standard_error > 0 else "-",
                f"{1e3 * row.low_term:+.2f}",
                f"{1e3 * row.high_term:+.2f}",
                f"{100 * row.dropped:.2f} %",
                f"{100 * row.control_dropped:.2f} %",
            )
            for row in rows
        ],
    )


def findings(results: TheoryResults, *, seeds: int) -> list[str]:
    """What the numbers say, with the numbers. seeds: trainings per clip."""
    steps = results.steps
    lines = [
        "With rewards that say nothing, the clip alone moves the policy: the gradient of the clipped objective is "
        "w c pi (h - E[h]), h = 1_X - 1_Y (largest difference to automatic differentiation "
        f"{steps.gradient_error:.1e}).",
        f"Both theorems give the whole first order: what they leave falls with the power {_orders(steps, 'Theorem 1')} "
        f"(Theorem 1) and {_orders(steps, 'Theorem 2')} (Theorem 2) of the step. Averages must be under the current "
        f"policy; under the one that sampled, the power is {_orders(steps, 'under pi_old')}.",
    ]
    scores = [abs(row.z) for row in results.samples if row.z is not None]
    if scores:
        verdict = "agree" if max(scores) < 4 else "DISAGREE"
        clips = "1 clip" if len(scores) == 1 else f"{len(scores)} clips"
        lines.append(f"Sampled groups {verdict} with the prediction: largest |z| {max(scores):.1f} over {clips}.")
    lines += [_training_finding(row, seeds) for row in results.training]
    return lines


def _orders(steps: StepStudy, theorem: str) -> str:
    orders = [row.order for row in steps.rows if row.theorem == theorem and row.order is not None]
    return f"{orders[-1]:.2f}" if orders else "(none: no remainder)"


def _training_finding(row: TrainingRow, seeds: int) -> str:
    setting = f"low {bound_label('low', row.low)}, high {bound_label('high', row.high)}"
    if row.standard_error == 0:
        return f"Trained with {setting}: no token was clipped, nothing differs from the control."
    z = row.difference / row.standard_error
    if seeds < SEEDS_TO_JUDGE:
        verdict = f"too few seeds to judge ({seeds}; {SEEDS_TO_JUDGE} or more)"
    else:
        verdict = "no effect beyond noise" if abs(z) < 3 else "entropy higher" if z > 0 else "entropy lower"
    return f"Trained with {setting}: {verdict} against its control ({row.difference:+.3f} of H0, z {z:+.1f})."
