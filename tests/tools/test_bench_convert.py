"""tools/bench_convert.py on a small model: the rows it promises, and that its memory is the command's."""

import json
import subprocess
import sys

from tests.documents import ROOT
from tests.models.shapes import CONFIGS


def test_rows_of_both_directions(tmp_path):
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    small = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config | small | {"num_key_value_heads": 2}))
    command = [sys.executable, str(ROOT / "tools" / "bench_convert.py"), "--json", "--layers", "2", "--tensor", "2"]
    command += ["--shape", str(tmp_path / "config.json"), "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads(done.stdout)["rows"]
    assert [row["direction"] for row in rows] == ["hf_to_dist", "dist_to_hf"]
    # Two vocabularies, and two layers of q and o, k and v, three of the MLP, biases and norms; and the last norm.
    layer = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256 + (256 + 2 * 128) + 2 * 256
    for row in rows:
        assert row["model_bytes"] == 2 * (2 * 1000 * 256 + 2 * layer + 256)
        assert row["seconds"] > 0
        assert 50e6 < row["peak_rss_bytes"] < 2e9  # torch alone has more than the first
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
