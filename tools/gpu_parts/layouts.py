"""A step of training, scores, two updates and export, under layouts against plain PyTorch on the CPU.

With fewer GPUs than ranks the ranks share a GPU over NCCL's loopback (tests/policy/ranks.take_gpu), which shows that
the collectives are right and says nothing of their speed.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_parts.check import Check
from megarl.objective.token_sums import SUM_NAMES
from megarl.records import Sample
from tests.policy.ranks import StepResult, make_checkpoint, make_samples, run_steps
from tests.policy.test_layout_matrix import LAYOUTS, PLAIN_NAMES, job, plain_step

ONE = ("one rank", "micro-batches of 24 tokens", "fused head")
TWO = ("TP2", "DP2", "PP2", "TP2 sequence parallel", "TP2 fused head", "PP2 fused head", "TP2 recompute")
TWO += ("DP2 plain optimizer",)
FOUR = ("TP2 PP2", "TP2 DP2 sequence parallel", "TP2 DP2 sequence parallel fused head", "PP2 DP2")
SMALL = ("one rank", "TP2 fused head", "PP2")
AT_A_TIME = 4
"""Layouts that share their processes: what one hangs in costs the others of its group."""
GROUP_TIMEOUT_S = 100.0
LIMITS = {"logp": 2e-5, "grad norm": 1e-5, "weights": 1e-5, "clip counts": 0.0}
COUNTS = ("tokens", "clipped_low", "clipped_high", "clipped_dual")


def run(check: Check) -> None:
    # Megarl's arithmetic is looked at, not torch.compile's: without it a group starts in a third of the time.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    path = make_checkpoint(check.scratch / "model", tied=True)
    first = make_samples(8, seed=1)
    # As in tests/policy/test_layout_matrix: the second half makes every clip act.
    samples = first + [replace(s, advantage=s.advantage * (-1) ** i) for i, s in enumerate(first)]
    expected = plain_step(path, job(path, {}), samples)
    for group in grouped(SMALL if check.small else (*ONE, *TWO, *(FOUR if check.gpus >= 4 else ()))):
        check.attempt(", ".join(group), compare, check, path, samples, expected, group, need_s=15)


def grouped(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Of one world size, at most AT_A_TIME."""
    groups = []
    for _, same in itertools.groupby(names, key=world_size):
        members = tuple(same)
        groups += [members[start : start + AT_A_TIME] for start in range(0, len(members), AT_A_TIME)]
    return groups


def world_size(name: str) -> int:
    parallel = LAYOUTS[name].get("parallel", {})
    assert isinstance(parallel, dict)
    return int(parallel.get("world_size", 1))


def compare(check: Check, path: Path, samples: list[Sample], expected: StepResult, names: Sequence[str]) -> None:
    jobs = [(job(path, LAYOUTS[name]), samples) for name in names]
    said = []
    for name, result in zip(names, run_steps(jobs, timeout_s=min(GROUP_TIMEOUT_S, check.left_s)), strict=True):
        errors = differences(result, expected)
        check.judge(name, {key: (errors[key], limit) for key, limit in LIMITS.items()}, ranks=world_size(name))
        said.append(f"{name} " + " ".join(f"{errors[key]:.0e}" for key in ("logp", "grad norm", "weights")))
    check.say("log-prob, grad norm, weights off by: " + "; ".join(said))


def differences(result: StepResult, expected: StepResult) -> dict[str, float]:
    """Largest of log-probs; relative of gradient norms and of tensors' norms; of counts, which are whole numbers."""
    logp = zip(itertools.chain(*result.old_logp), itertools.chain(*expected.old_logp), strict=True)
    norms = zip(result.grad_norms, expected.grad_norms, strict=True)
    counts = [
        abs(got[SUM_NAMES.index(name)] - want[PLAIN_NAMES.index(name)])
        for got, want in zip(result.sums, expected.sums, strict=True)
        for name in COUNTS
    ]
    return {
        "logp": max(abs(a - b) for a, b in logp),
        "grad norm": max(abs(a - b) / b for a, b in norms),
        "weights": max(float((result.weights[key] - v).norm() / v.norm()) for key, v in expected.weights.items()),
        "clip counts": max(counts),
    }
