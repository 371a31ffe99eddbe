"""The head that a run has where its configuration leaves it open: numbers by hand."""

import dataclasses

import pytest

from megarl.cli.plan import make_plan
from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.planning.engine_memory import GIB
from megarl.planning.head import bytes_with_logits, choose_head, with_head
from tests.models.shapes import CONFIGS
from tests.planning.plans import plan_of

AUTO = "policy.head=auto"
LONG = ("rollout.max_response_tokens=15360", "policy.tokens_per_micro_batch=16384")
"""Micro-batches of 16,384 tokens, each of which may have logits: 16,384 x 152,064 x 2 bytes are 4.64 GiB."""


def planned(*overrides: str, **options: int):  # type: ignore[no-untyped-def]
    return load_planned(CONFIGS / "qwen2.5-7b.json", [AUTO, *overrides], PlanOptions(**options))


def test_the_head_changes_where_the_logits_no_longer_fit() -> None:
    found = planned(*LONG, gpus=8)
    config, shape = found.config, found.shape
    logits = plan_of("qwen2.5-7b", "policy.head=logits", *LONG, gpus=8)
    fused = plan_of("qwen2.5-7b", "policy.head=fused", *LONG, gpus=8)
    needed = logits.worst.total
    assert needed - fused.worst.total == pytest.approx(16_384 * 152_064 * 2, rel=1e-3)
    assert bytes_with_logits(config, shape) == needed
    for gpu_bytes, head in ((needed, "logits"), (needed - 1, "fused"), (None, "logits")):
        choice = choose_head(config, shape, gpu_bytes=gpu_bytes)
        assert choice.head == head
        assert with_head(config, choice).policy.head == head


def test_an_engine_that_sleeps_there_leaves_less() -> None:
    alone, beside = planned(*LONG, gpus=8), planned(*LONG, "cluster.colocate=true", gpus=8)
    assert bytes_with_logits(beside.config, beside.shape) == bytes_with_logits(alone.config, alone.shape) + 2 * GIB


def test_the_copy_that_changes_are_taken_against_is_there_too() -> None:
    delta = ("rollout.publish.transport=network", "rollout.publish.delta=true")
    found = planned(*LONG, *delta, gpus=8)
    needed = bytes_with_logits(found.config, found.shape)
    plan = plan_of("qwen2.5-7b", "policy.head=logits", *LONG, *delta, gpus=8)
    assert needed == plan.worst.total
    assert plan.worst.publication > plan.publication.sent_max_bytes > 0


def test_of_a_pipeline_the_last_stage_decides() -> None:
    """Stage 0 has more activations in flight, which another head would not lessen."""
    found = planned(*LONG, gpus=8, pipeline=4)
    plan = plan_of("qwen2.5-7b", "policy.head=logits", *LONG, gpus=8, pipeline=4)
    assert bytes_with_logits(found.config, found.shape) == plan.policy[-1].total < plan.worst.total


@pytest.mark.parametrize(("gib", "head"), [(141, "logits"), (1, "fused")])
def test_plan_says_which_and_plans_with_it(gib: int, head: str) -> None:
    report = make_plan(planned(*LONG, gpus=8), gpu_memory_gib=gib)
    assert report.plan.head is not None
    assert report.plan.head.head == head
    assert report.as_dict()["head"] == dataclasses.asdict(report.plan.head)
    assert report.plan.policy == plan_of("qwen2.5-7b", f"policy.head={head}", *LONG, gpus=8).policy
    named = plan_of("qwen2.5-7b", f"policy.head={head}", *LONG, gpus=8)
    assert named.head is None


def test_what_is_said() -> None:
    found = planned(*LONG, gpus=8)
    needed = bytes_with_logits(found.config, found.shape) / GIB
    fused = choose_head(found.config, found.shape, gpu_bytes=40 * GIB)
    assert str(fused) == f"fused: with logits the last stage would need {needed:.1f} of the 40.0 GiB of a GPU"
    assert str(choose_head(found.config, found.shape, gpu_bytes=None)) == "logits: there are no GPUs"
