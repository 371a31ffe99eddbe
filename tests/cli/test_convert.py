"""`megarl convert` as a command: what it prints, refuses, and leaves when it is ended."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from bench_convert import write_random_checkpoint

from megarl.checkpoint.hf_files import HF_DIRECTORY
from tests.models.shapes import CONFIGS


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megarl.cli.main", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def model(tmp_path):
    """A random model of a few megabytes; the tokenizer is a stand-in."""
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_random_checkpoint(tmp_path / "model", config | sizes | {"vocab_size": 1000, "num_hidden_layers": 4})
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def test_there_and_back(tmp_path, model):
    there = run(model, tmp_path / "dist", "--tensor", 2, "--pipeline", 2, "--check")
    assert there.returncode == 0, there.stderr
    lines = dict(line.split(maxsplit=1) for line in there.stdout.splitlines())
    assert lines["source"] == f"{model} (Hugging Face)"
    assert lines["target"] == f"{tmp_path / 'dist'} (torch.distributed.checkpoint, tensor 2 x pipeline 2)"
    size = (model / "model.safetensors").stat().st_size
    assert lines["weights"].startswith(f"{size / 1e9:.2f} GB in ")
    assert 0.1 < float(lines["memory"].split()[2]) < 2
    assert lines["checked"] == "every element is the source's"
    assert (tmp_path / "dist" / HF_DIRECTORY / "tokenizer.json").read_text() == "{}"
    back = run(tmp_path / "dist", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_refusals_end_with_2_and_say_what_to_change(tmp_path, model):
    for arguments, words in (
        ([model, tmp_path / "out", "--to", "hf", "--tensor", 2], "--tensor and --pipeline lay out --to dist"),
        ([model, tmp_path / "out", "--tensor", 3], "4 attention heads are not a multiple of it"),
        ([tmp_path / "nowhere", tmp_path / "out"], "found nothing at"),
        ([tmp_path, tmp_path / "out"], "with config.json, found no"),
        ([model, model], "exists and is not empty"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_may_not_be_written(tmp_path, model):
    (tmp_path / "file").touch()
    done = run(model, tmp_path / "file" / "out")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal_it_leaves_nothing(tmp_path, number):
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "vocab_size": 4096}
    write_random_checkpoint(tmp_path / "model", config | sizes | {"num_hidden_layers": 8})
    command = [sys.executable, "-m", "megarl.cli.main", "convert", str(tmp_path / "model"), str(tmp_path / "out")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial, deadline = tmp_path / ".out.partial", time.monotonic() + 60
    while not list(partial.glob("*.distcp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode not in (0, -number)
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
