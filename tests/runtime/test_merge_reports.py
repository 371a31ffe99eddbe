"""What the replicas of an update, the ranks of a publication and the engines report becomes one set of metrics."""

from typing import Any

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_sums import TokenSums
from megarl.objective.tokens import Choices, Controls
from megarl.policy.reports import UpdateReport
from megarl.reshard.tally import PublishReport
from megarl.rollout.weight_updates import Adoption
from megarl.rules import Rule
from megarl.runtime.merging import merge_adoptions, merge_publish_reports, merge_reports
from megarl.telemetry.memory_phases import GIB, MemoryUse
from megarl.telemetry.metrics import Max, Mean, Min
from tests.objective.tokens import make_tokens


class Alone:
    """The quintiles are not looked at here, so each replica may take its own."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    max = sum


def report(logp: list[float], advantage: float) -> UpdateReport:
    tokens = make_tokens([len(logp)], logp=logp, old_logp=-1.0, advantage=advantage, entropy=[1.0] * len(logp))
    objective = ObjectiveConfig.model_validate({"clip": {"low": 0.2, "high": 0.2}})
    loss = compute_token_loss(objective, Controls(step=1, seed=0), tokens, Choices.none(tokens.logp_T))
    sums: TokenSums = collect_token_sums(tokens, loss, Alone())
    return UpdateReport(sums=sums, grad_norm=3.0, lr=1e-6)


def test_replicas_of_unequal_size_merge_as_one_batch() -> None:
    # Ratios e^0.5 (clipped high) and 1, 1 on the first replica; e^-0.5 (clipped low) on the second.
    result = merge_reports(
        [report([-0.5, -1.0, -1.0], 1.0), report([-1.5], -1.0)], rules=Rule.CLIP_LOW | Rule.CLIP_HIGH
    )
    metrics = result.metrics
    assert metrics["clip_ratio/high_mean"].value == pytest.approx(1 / 4)
    assert metrics["clip_ratio/low_mean"].value == pytest.approx(1 / 4)
    assert metrics["actor/logp"].value == pytest.approx(-4.0 / 4)
    assert metrics["actor/ratio_max"] == Max(pytest.approx(1.6487212707))
    assert metrics["actor/ratio_min"] == Min(pytest.approx(0.6065306597))
    assert metrics["actor/grad_norm"].value == 3.0
    # What steers are fields, sums and counts of both replicas; there is no reference.
    assert result.logp == Mean(pytest.approx(-4.0), 4.0)
    assert result.kl == Mean(0.0, 0.0)


def publish_report(**changes: float) -> PublishReport:
    values: dict[str, Any] = {
        "version": 1,
        "messages": 2,
        "bytes": 100,
        "dense_bytes": 400,
        "num_changed": 10,
        "num_compared": 40,
        "ready_s": 0.0,
        "pack_s": 0.0,
        "checksum_s": 0.0,
        "wire_s": 0.0,
    }
    return PublishReport(**{**values, **changes})


def test_a_publication_takes_as_long_as_its_slowest_rank() -> None:
    reports = [
        publish_report(pack_s=3.0, checksum_s=1.0, wire_s=2.0),
        publish_report(pack_s=1.0, checksum_s=4.0, wire_s=5.0, bytes=300, messages=5),
    ]
    metrics = merge_publish_reports(reports)
    assert metrics["timing_s/publish_pack"] == Max(3.0)
    assert metrics["timing_s/publish_checksum"] == Max(4.0)
    assert metrics["timing_s/publish_wire"] == Max(5.0)
    assert (metrics["publish/bytes"].value, metrics["publish/messages"].value) == (400.0, 7.0)


def test_changed_shares_are_of_all_ranks_together() -> None:
    metrics = merge_publish_reports(
        [publish_report(), publish_report(num_changed=50, num_compared=160, dense_bytes=100)]
    )
    assert metrics["publish/changed_share"] == Mean(60.0, 200.0)
    assert metrics["publish/bytes_over_dense"] == Mean(200.0, 500.0)
    whole = merge_publish_reports([publish_report(num_changed=0, num_compared=0)])
    assert not {"publish/changed_share", "publish/bytes_over_dense"} & whole.keys()


def test_a_change_of_weights_takes_as_long_as_the_slowest_engine() -> None:
    first = Adoption(drain_s=1.0, install_s=5.0, resume_s=0.1)
    metrics = merge_adoptions([first, Adoption(drain_s=2.0, install_s=3.0, resume_s=0.4)])
    assert metrics == {
        "timing_s/publish_drain": Max(2.0),
        "timing_s/publish_install": Max(5.0),
        "timing_s/publish_resume": Max(0.4),
    }


def test_of_the_engines_workers_the_largest_is_told() -> None:
    uses = [MemoryUse(peak=GIB, end=3 * GIB), MemoryUse(peak=2 * GIB, end=GIB), MemoryUse(peak=GIB, end=GIB)]
    workers = [{"sleep": use} for use in uses]
    times: dict[str, float] = {"drain_s": 0.0, "install_s": 0.0, "resume_s": 0.0}
    metrics = merge_adoptions(
        [Adoption(**times, memory=tuple(workers[:1])), Adoption(**times, memory=tuple(workers[1:]))]
    )
    assert metrics["memory/engine_sleep_max_gib"] == Max(2.0)
    assert metrics["memory/engine_sleep_end_gib"] == Max(3.0)
