"""By which way the policy offers its weights, as configured and as the machine allows."""

from pathlib import Path

import pytest
import torch

from megarl.models.families import read_model_shape
from megarl.parallel.grid import RankGrid
from megarl.policy.weights import make_offer
from tests.config.text import load_small
from tests.models.shapes import CONFIGS

SHARED = "cluster.colocate=true"
NONE = "rollout.publish.staging='none'"
DEVICE = "rollout.publish.staging='device'"


@pytest.mark.parametrize(
    ("device", "overrides", "wanted"),
    [
        ("cuda", (), ("shared_memory", "cuda", "host")),
        ("cuda", (DEVICE,), ("shared_memory", "cuda", "device")),
        ("cuda", (SHARED,), ("shared_memory", "cpu", "host")),
        ("cuda", (SHARED, NONE), ("mapped", "cpu", "host")),
        ("cpu", (SHARED, NONE), ("shared_memory", "cpu", "host")),
        ("cpu", (DEVICE,), ("shared_memory", "cpu", "host")),
    ],
)
def test_channel_wire_and_staging(
    device: str, overrides: tuple[str, ...], wanted: tuple[str, str, str], tmp_path: Path
) -> None:
    config = load_small(tmp_path, *overrides)
    offer = make_offer(
        read_model_shape(CONFIGS / "qwen2.5-7b.json"),
        config=config,
        grid=RankGrid.of(config.parallel),
        dtype=torch.bfloat16,
        device=torch.device(device),
    )
    assert (offer.transport, offer.device, offer.staging) == wanted
