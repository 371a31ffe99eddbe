"""The benchmark of publications: the figures that do not depend on the machine, and its refusals."""

import json
import math
from pathlib import Path

import pytest
from bench_reshard import LAYOUTS, measure_layout, measure_planning, measure_wall, parse_arguments

KEYS = {
    "shape",
    "policy",
    "rollout",
    "received_over_bound_max",
    "sent_max_over_mean",
    "gather_received_over_bound",
}


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=lambda layout: f"{layout[0]} to {layout[2]}")
def test_workers_receive_what_they_hold_and_no_more(layout: tuple) -> None:
    row = measure_layout(*layout)
    assert set(row) == KEYS
    assert row["received_over_bound_max"] == 1.0
    assert row["sent_max_over_mean"] < 1.001
    # By the gather path everyone gets everything: as many times as there are tensor ranks, but for the norms.
    assert row["gather_received_over_bound"] == pytest.approx(layout[2][1], rel=1e-3)


def test_planning_takes_no_longer_for_more_ranks() -> None:
    """0.025 and 0.031 s on the machine it was written on; a loaded one is slower."""
    assert measure_planning(10_240) < 1.0


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--model", str(tmp_path)])
    assert "python tools/smollm2.py" in capsys.readouterr().err


@pytest.mark.slow
def test_transfers_are_made_with_checksums_without_and_by_gathering(tmp_path: Path) -> None:
    """Of a model so small that the figures mean nothing; that they are there means that all three arrived."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    figures = measure_wall(tmp_path, repeats=2)
    assert figures.keys() == {"wall_ratio_to_gather", "checksum_share_of_time", "checksum_share_of_cpu"}
    assert all(math.isfinite(figure) for figure in figures.values())
    assert figures["wall_ratio_to_gather"] > 0
