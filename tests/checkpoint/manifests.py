"""Manifests of checkpoints whose tensors nobody reads."""

from pathlib import Path
from typing import Any

from megarl.checkpoint.manifest import Manifest, describe_config
from megarl.config.run import RunConfig
from megarl.controller.progress import RunProgress
from megarl.telemetry.versions import collect_versions

FILE = "__0_0.distcp"


def make_manifest(directory: Path, made_with: RunConfig, *, step: int, **changes: Any) -> Manifest:
    """Of a checkpoint in `directory` with one file, which is made; `changes` replace what the manifest says."""
    (directory / FILE).write_bytes(b"tensors")
    table, digest = describe_config(made_with)
    facts: dict[str, Any] = {
        "step": step,
        "policy_version": step,
        "updates": 2 * step,
        "optimizer_step": 2 * step,
        "progress": RunProgress(step=step, policy_version=step).state_dict(),
        "layout": {},
        "model": {},
        "config": table,
        "config_digest": digest,
        "versions": collect_versions(),
        "telemetry": {},
        "metrics": {},
        "files": {FILE: {"bytes": len(b"tensors"), "checksum": "crc32:00000000"}},
    }
    return Manifest(**(facts | changes))
