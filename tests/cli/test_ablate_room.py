"""How many runs of an ablation a machine has room for, and which GPUs each sees."""

import os
from pathlib import Path

import pytest

from megarl.ablation.launch import Needs
from megarl.cli import ablate_room
from megarl.cli.ablate_room import find_needs, find_slots
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from tests.e2e.configuration import write_tiny_config

GIB = 2**30
CPU = ("cpu", 4, 20.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cores, 20 GiB free, no GPUs, no Ray."""
    monkeypatch.setattr(ablate_room, "detect_stack", lambda _: "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(ablate_room, "usable_cores", lambda: 4.0)
    monkeypatch.setattr(ablate_room, "available_memory", lambda: 20 * GIB)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def needs(**changes: object) -> Needs:
    facts = {"nodes": 1, "gpus": 8, "cores": 1, "memory_gib": 4.0, "joins_ray": False}
    return Needs(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "wanted", "count", "why"),
    [
        (needs(), 1, 1, None),
        (needs(), 4, 4, None),
        (needs(), 8, 4, "at_once is 8, but this machine has room for 4 at a time: 4 cores, 1 for each"),
        (needs(cores=3), 2, 1, "at_once is 2, but this machine has room for 1 at a time: 4 cores, 3 for each"),
        (needs(cores=9), 1, 1, None),  # it takes turns on what there is
        (needs(memory_gib=8.0), 4, 2, "20.0 GiB of memory free, about 8 for each"),
    ],
)
def test_without_gpus_cores_and_memory_bound_it(
    machine: pytest.MonkeyPatch, asked: Needs, wanted: int, count: int, why: str | None
) -> None:
    slots, less = find_slots(asked, wanted)
    assert len(slots) == count
    assert (less is None) == (why is None)
    assert (why or "") in (less or "")
    assert all(not slot.variables for slot in slots)
    own = [core for slot in slots for core in slot.cores]
    assert len(own) == len(set(own))  # no core is of two
    assert {len(slot.cores) for slot in slots} == {4 // count if count > 1 else 0}


def test_a_container_s_share_of_the_cores_counts(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ablate_room, "usable_cores", lambda: 2.5)
    slots, less = find_slots(needs(), 4)
    assert [len(slot.cores) for slot in slots] == [2, 2]
    assert less is not None
    assert "room for 2 at a time: 2.5 cores, 1 for each" in less


def test_on_gpus_each_run_sees_its_own(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ablate_room, "detect_stack", lambda _: "gpu")
    machine.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,GPU-a,GPU-b,2")
    slots, less = find_slots(needs(gpus=3), 4)
    assert [slot.variables for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": "4,5,6"}, {"CUDA_VISIBLE_DEVICES": "7,GPU-a,GPU-b"},
    ]  # fmt: skip
    assert less == "at_once is 4, but this machine has room for 2 at a time: 7 GPUs, 3 for each (cluster.gpus_per_node)"
    assert [slot.variables for slot in find_slots(needs(gpus=3), 1)[0]] == [{}]
    with pytest.raises(ConfigError, match=r"cluster\.gpus_per_node 8, but this machine has 7 GPUs"):
        find_slots(needs(), 1)
    with pytest.raises(ConfigError, match=r"cluster\.nodes is 2: several nodes are those of a Ray cluster"):
        find_slots(needs(nodes=2, gpus=1), 1)


def test_all_gpus_are_those_that_nvidia_smi_lists(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(ablate_room, "detect_stack", lambda _: "gpu")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in find_slots(needs(gpus=1), 3)[0]] == ["0", "1", "2"]


def test_a_ray_cluster_that_is_joined_is_not_shared_out(machine: pytest.MonkeyPatch) -> None:
    assert len(find_slots(needs(joins_ray=True), 1)[0]) == 1
    with pytest.raises(ConfigError, match="set at_once = 1, or let each run start Ray here"):
        find_slots(needs(joins_ray=True), 2)
    machine.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ConfigError, match="at_once: the runs join a Ray cluster"):
        find_slots(needs(), 2)


def test_the_most_demanding_run_counts(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    small = load_config(config, ["parallel={tensor = 1, world_size = 1}"])
    large = load_config(config, ["rollout.engines=3", "rollout.cpu_kv_cache_gib=2.0", "cluster.gpus_per_node=5"])
    alone, both = find_needs([small]), find_needs([large, small])
    assert (alone.cores, both.cores) == (1, 3)
    assert both.gpus == 8
    # Three engines with two GiB of KV cache each, against one with a quarter; and three processes more.
    assert both.memory_gib - alone.memory_gib == pytest.approx(6 - 0.25 + 3 * 0.9, abs=0.05)
