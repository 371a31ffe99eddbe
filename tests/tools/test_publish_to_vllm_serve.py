"""The example of a trainer for a plain vLLM server, as its --help shows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *arguments]
    # Engines that other tests ran in this process left their settings in its environment.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "MEGARL_"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=own)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_plain_server_completes_with_the_published_weights(tmp_path: Path, tensor: int) -> None:
    for name, seed in (("base", 0), ("new", 1)):
        made = run("make_tiny_model.py", str(tmp_path / name), "--layers", "2", "--seed", str(seed))
        assert made.returncode == 0, made.stderr
    done = run("publish_to_vllm_serve.py", str(tmp_path / "base"), str(tmp_path / "new"), "--tensor", str(tensor))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    # The same prompt to a server that starts with the new weights and is sent the same.
    fresh = run("publish_to_vllm_serve.py", str(tmp_path / "new"), str(tmp_path / "new"), "--tensor", str(tensor))
    assert fresh.returncode == 0, fresh.stderr
    expected = json.loads(fresh.stdout.splitlines()[-1])
    assert answer["before"] != answer["after"]
    assert answer["after"] == expected["before"] == expected["after"]


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    for name, layers in (("base", "2"), ("new", "4")):
        assert run("make_tiny_model.py", str(tmp_path / name), "--layers", layers).returncode == 0
    done = run("publish_to_vllm_serve.py", str(tmp_path / "base"), str(tmp_path / "new"))
    assert done.returncode == 2
    assert "have different shapes" in done.stderr
