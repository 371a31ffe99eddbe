"""Weights from policy ranks to an engine's workers, by the real senders and receivers in processes of their own, with
random tensors: every version is in the workers' parameters to the bit. With fewer GPUs than processes they share them.
"""

import time
from dataclasses import replace
from typing import Any

import torch

from gpu_parts.check import Check
from tests.models.shapes import make_shape
from tests.reshard.fault_processes import Processes
from tests.reshard.publication import Peer, Setting, connect

VERSIONS = (1, 2, 3)
"""Version 3 differs from 2 in one element of 37."""
SHAPE = {
    "num_layers": 4,
    "hidden_size": 1024,
    "ffn_size": 2816,
    "num_heads": 16,
    "num_kv_heads": 4,
    "head_dim": 64,
    "vocab_size": 16_000,
}
"""0.08 G parameters."""
BUCKET_BYTES = 64 << 20
CALL_TIMEOUT_S = 60.0


def settings(check: Check) -> dict[str, Setting]:
    """By name. Two policy ranks and two workers where there are GPUs for them or none at all."""
    wide = {"tensor": 2, "rollout_tensor": 2} if check.gpus >= 4 else {}
    if check.small:
        base = Setting(tensor=2, dtype=torch.bfloat16)
        return {
            "network (gloo)": base,
            "network (gloo), changes only": replace(base, delta=True),
            "shared memory": replace(base, transport="shared_memory"),
            "without staging (files for CUDA IPC)": replace(base, transport="mapped"),
        }
    base = Setting(
        device="cuda",
        dtype=torch.bfloat16,
        shape=make_shape(**SHAPE),
        bucket_bytes=BUCKET_BYTES,
        timeout_s=30.0,
        **wide,
    )
    return {
        "NCCL": replace(base, staging="device"),
        "NCCL, staged in host memory": base,
        "NCCL, changes only": replace(base, delta=True),
        "shared host memory": replace(base, transport="shared_memory"),
        "CUDA IPC": replace(base, transport="shared_memory", staging="device"),
        "CUDA IPC, without staging": replace(base, transport="mapped"),
    }


def run(check: Check) -> None:
    for name, setting in settings(check).items():
        check.attempt(name, publish, check, name, setting, need_s=10)


def publish(check: Check, name: str, setting: Setting) -> None:
    peers = range(setting.num_peers)
    ranks = setting.grid.world_size
    timeout_s = min(CALL_TIMEOUT_S, check.left_s)
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        versions = []
        for version in VERSIONS:
            started = time.perf_counter()
            answers = processes.call(peers, "publish", version, timeout_s=timeout_s)
            versions.append(measured(answers[:ranks], answers[ranks:], time.perf_counter() - started))
        processes.call(reversed(peers), "leave", timeout_s=timeout_s)
    equal = all(version["equal"] for version in versions)
    check.row(case=name, ranks=ranks, workers=setting.num_peers - ranks, versions=versions, ok=equal)
    if not equal:
        check.wrong(f"{name}: the workers' parameters are not those that were published")
    best = max(versions[1:], key=lambda version: version["gb_per_s"])
    said = (
        f"{name}, {ranks} ranks to {setting.num_peers - ranks} workers: {'equal to the bit' if equal else 'NOT EQUAL'}"
    )
    check.say(f"{said}, {best['bytes'] / 1e9:.3g} GB in {best['seconds']:.3f} s ({best['gb_per_s']:.2f} GB/s)")


def measured(reports: list[Any], held: list[bool], whole_s: float) -> dict[str, Any]:
    """Of a version: the slowest rank's seconds, from when the workers were ready, without making the tensors."""
    seconds = max(report.pack_s + report.checksum_s + report.wire_s for report in reports)
    sent = sum(report.bytes for report in reports)
    return {
        "equal": all(held),
        "bytes": sent,
        "dense_bytes": sum(report.dense_bytes for report in reports),
        "seconds": seconds,
        "gb_per_s": sent / seconds / 1e9,
        "whole_s": whole_s,
    }
