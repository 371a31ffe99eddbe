"""How many runs of an ablation this machine has room for at a time, and which GPUs each of them sees."""

import math
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from megarl.ablation.launch import Needs
from megarl.ablation.processes import Slot
from megarl.cli.doctor_packages import detect_stack
from megarl.cli.stack import deciding_versions
from megarl.cli.visible_gpus import VISIBLE, named_gpus
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors
from megarl.runtime.ray_address import environment_address
from megarl.telemetry.machine_limits import available_memory, usable_cores

_GIB = 2**30
_PROCESS_GIB = 0.9
"""Of a policy rank, an engine, or the trainer, beside weights: the interpreter, torch, vLLM; measured on a CPU."""
_RAY_GIB = 0.7
"""Ray, and the process that keeps it between runs."""
_TRAINED_BYTES = 18
"""Of a parameter: weights, gradient, moments, and float32 weights."""
_ASK_S = 60.0


def find_needs(configs: Iterable[RunConfig]) -> Needs:
    """Of the most demanding of the runs. Their models' files are there."""
    found = list(configs)
    return Needs(
        nodes=max(config.cluster.nodes for config in found),
        gpus=max(config.cluster.gpus_per_node for config in found),
        cores=max(max(config.parallel.world_size, config.rollout.engines * config.rollout.tensor) for config in found),
        memory_gib=round(max(map(_memory_gib, found)), 2),
        joins_ray=any(config.cluster.ray_address is not None for config in found),
    )


def find_slots(needs: Needs, wanted: int) -> tuple[list[Slot], str | None]:
    """(the places for runs, why there are fewer than wanted). ConfigError where there is none."""
    if needs.joins_ray or environment_address():
        if wanted > 1:
            raise ConfigError(
                "at_once: the runs join a Ray cluster (cluster.ray_address, RAY_ADDRESS), whose GPUs are not this "
                "machine's to share out; set at_once = 1, or let each run start Ray here"
            )
        return [Slot({})], None
    if detect_stack(deciding_versions()) == "gpu":
        return _gpu_slots(needs, wanted, _visible_gpus())
    cores, usable, free_gib = sorted(os.sched_getaffinity(0)), usable_cores(), available_memory() / _GIB
    room = [
        (f"{usable:g} cores, {needs.cores} for each", int(usable // needs.cores)),
        (
            f"{free_gib:.1f} GiB of memory free, about {needs.memory_gib:g} for each",
            int(free_gib // needs.memory_gib),
        ),
    ]
    why, most = min(room, key=lambda item: item[1])
    # A single run is let try: it takes turns on what there is.
    count = min(wanted, max(1, most))
    return _core_slots(cores, count), _describe_less(wanted, count, why)


def _core_slots(cores: Sequence[int], count: int) -> list[Slot]:
    """Each has cores of its own. An engine starts a thread for every core it may use and binds it there: threads of
    several engines on one core wait for each other by spinning."""
    if count == 1:
        return [Slot({})]
    share = len(cores) // count
    return [Slot({}, cores=frozenset(cores[at * share : (at + 1) * share])) for at in range(count)]


def _gpu_slots(needs: Needs, wanted: int, gpus: list[str]) -> tuple[list[Slot], str | None]:
    if needs.nodes > 1:
        raise ConfigError(
            f"cluster.nodes is {needs.nodes}: several nodes are those of a Ray cluster (cluster.ray_address) or of a "
            "Slurm job (megarl ablate --slurm)"
        )
    if needs.gpus > len(gpus):
        raise ConfigError(
            f"cluster.gpus_per_node {needs.gpus}, but this machine has {len(gpus)} GPUs; set it to what a run takes of "
            "them (parallel.world_size, and as many as its engines have)"
        )
    if wanted == 1:
        return [Slot({})], None
    count = min(wanted, len(gpus) // needs.gpus)
    parts = [gpus[at * needs.gpus : (at + 1) * needs.gpus] for at in range(count)]
    slots = [Slot({VISIBLE: ",".join(part)}) for part in parts]
    return slots, _describe_less(wanted, count, f"{len(gpus)} GPUs, {needs.gpus} for each (cluster.gpus_per_node)")


def _describe_less(wanted: int, count: int, why: str) -> str | None:
    if count >= wanted:
        return None
    return f"at_once is {wanted}, but this machine has room for {count} at a time: {why}"


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: those that it lets this process see, else all."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return named_gpus(given)
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def _memory_gib(config: RunConfig) -> float:
    """Of all processes of a run on a machine without GPUs, roughly: it is an upper bound for small models."""
    parameters = sum(math.prod(sizes) for sizes in hf_tensors(read_model_shape(config.model.path)).values())
    engines = config.rollout.engines
    processes = 1 + config.parallel.world_size + engines * config.rollout.tensor
    weights = parameters * (_TRAINED_BYTES * config.parallel.data + engines * config.model.itemsize) / _GIB
    return processes * _PROCESS_GIB + _RAY_GIB + weights + engines * config.rollout.cpu_kv_cache_gib
