"""What workers report, each of its part, as one result. Needs no Ray."""

from collections.abc import Sequence

from megarl.objective.token_sums import merge_token_sums, to_metrics
from megarl.objective.update_result import UpdateResult
from megarl.policy.reports import UpdateReport
from megarl.reshard.tally import PublishReport
from megarl.rollout.weight_updates import Adoption
from megarl.rules import Rule
from megarl.telemetry.memory_phases import memory_metrics
from megarl.telemetry.metrics import Mean, Metrics, declared, merge


def merge_reports(reports: Sequence[UpdateReport], *, rules: Rule) -> UpdateResult:
    """One update from its replicas' reports: sums add up; gradient norm and rate are global already."""
    sums = merge_token_sums(report.sums for report in reports)
    metrics = to_metrics(sums, rules=rules)
    metrics |= declared({"actor/grad_norm": reports[0].grad_norm, "actor/lr": reports[0].lr})
    return UpdateResult.of(sums, metrics, loop=reports[0].loop)


def merge_publish_reports(reports: Sequence[PublishReport]) -> Metrics:
    """Metrics of one publication from its ranks' reports; no shares where nothing was compared."""
    of_shares = any(report.num_compared for report in reports)
    return merge(*(_publish_metrics(report) | (_share_metrics(report) if of_shares else {}) for report in reports))


def _publish_metrics(report: PublishReport) -> Metrics:
    return declared(
        {
            "publish/bytes": float(report.bytes),
            "publish/messages": float(report.messages),
            "timing_s/publish_pack": report.pack_s,
            "timing_s/publish_checksum": report.checksum_s,
            "timing_s/publish_wire": report.wire_s,
        }
    )


def _share_metrics(report: PublishReport) -> Metrics:
    return declared(
        {
            "publish/changed_share": Mean(float(report.num_changed), float(report.num_compared)),
            "publish/bytes_over_dense": Mean(float(report.bytes), float(report.dense_bytes)),
        }
    )


def merge_adoptions(adoptions: Sequence[Adoption]) -> Metrics:
    """Metrics of one change of weights from its engines, and of the memory that they used in the step that it ends."""
    memory = memory_metrics("engine", (of_worker for adoption in adoptions for of_worker in adoption.memory))
    return memory | merge(
        *(
            declared(
                {
                    "timing_s/publish_drain": adoption.drain_s,
                    "timing_s/publish_install": adoption.install_s,
                    "timing_s/publish_resume": adoption.resume_s,
                }
            )
            for adoption in adoptions
        )
    )
