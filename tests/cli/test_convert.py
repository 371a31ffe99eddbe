"""`megarl convert` as a command: what it prints, refuses, and leaves when it is ended."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from bench_convert import write_random_checkpoint

from megarl.checkpoint.convert import convert
from megarl.checkpoint.hf_files import HF_DIRECTORY
from tests.checkpoint.test_convert import complete
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
    assert float(lines["tensors"].split()[0]) == pytest.approx(size / 1e6, abs=0.02)  # the header's 4 KB
    assert lines["tensors"].split()[1] == "MB"
    assert 0.1 < float(lines["memory"].split()[2]) < 2
    assert lines["checked"] == "every element is the source's"
    assert (tmp_path / "dist" / HF_DIRECTORY / "tokenizer.json").read_text() == "{}"
    back = run(tmp_path / "dist", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_refusals_end_with_2_and_say_what_to_change(tmp_path, model):
    for arguments, words in (
        ([model, tmp_path / "out", "--to", "hf", "--tensor", 2], "has no layout: leave out --tensor and --pipeline"),
        ([model, tmp_path / "out", "--tensor", 3], "4 attention heads are not a multiple of it"),
        ([tmp_path / "nowhere", tmp_path / "out"], "found nothing at"),
        ([model, tmp_path / "out", "--shard-gb", "inf"], "expected a number of GB for --shard-gb, found inf"),
        ([tmp_path, tmp_path / "out"], f"is no checkpoint; name the one that is meant in it, e.g. {model}"),
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


def test_a_path_whose_bytes_are_no_text(tmp_path, model):
    """What was done is told, and so is what was not."""
    strange = tmp_path / os.fsdecode(b"o\xfft")
    done = run(model, strange)
    assert (done.returncode, done.stderr) == (0, "")
    target = f"target   {tmp_path}/o\\udcfft (torch.distributed.checkpoint, tensor 1 x pipeline 1)"
    assert target in done.stdout.splitlines()
    done = run(model, strange)
    assert (done.returncode, done.stdout) == (2, "")
    assert "o\\udcfft exists and is not empty" in done.stderr


def test_of_a_run_the_checkpoint_that_was_taken_is_told(tmp_path, model):
    run_directory = tmp_path / "run"
    checkpoint = run_directory / "checkpoints" / "step-000007"
    convert(model, checkpoint)
    complete(checkpoint, step=7)
    done = run(run_directory, tmp_path / "out", "--check")
    assert done.returncode == 0, done.stderr
    assert f"source   {checkpoint} (torch.distributed.checkpoint)" in done.stdout.splitlines()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A random model that is converted for as long as a signal takes."""
    config = json.loads((CONFIGS / "qwen2.5-7b.json").read_text())
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "vocab_size": 4096}
    directory = tmp_path_factory.mktemp("large") / "model"
    write_random_checkpoint(directory, config | sizes | {"num_hidden_layers": 6})
    return directory


def start(source, target, *arguments: object) -> subprocess.Popen[str]:
    """A conversion in a process group of its own."""
    command = [sys.executable, "-m", "megarl.cli.main", "convert", source, target, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **pipes)


def await_files(child: subprocess.Popen[str], target) -> None:
    """Until it writes tensors."""
    while not list(target.with_name(f".{target.name}.partial").glob("*.distcp")):
        assert child.poll() is None
        time.sleep(0.01)


def processes_of(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def await_no_process(session: int) -> None:
    """multiprocessing's tracker hears of the end of the others and ends then."""
    deadline = time.monotonic() + 30
    while processes_of(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(session) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_all_of_its_processes_ends_it_without_a_word(tmp_path, large, number):
    """As a terminal's Ctrl-C and a batch system's SIGTERM come: no stack of a helper's, no talk of one that died."""
    child = start(large, tmp_path / "out", "--processes", 2)
    await_files(child, tmp_path / "out")
    os.killpg(child.pid, number)
    out, errors = child.communicate(timeout=100)
    assert (child.returncode, out, errors) == (128 + number, "", "")
    assert list(tmp_path.iterdir()) == []
    await_no_process(child.pid)


def test_ctrl_c_while_the_processes_start(tmp_path, large):
    """They import for seconds."""
    child = start(large, tmp_path / "out", "--processes", 2)
    while len(processes_of(child.pid)) < 4:  # it, multiprocessing's tracker, and two
        assert child.poll() is None
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    out, errors = child.communicate(timeout=100)
    assert (child.returncode, out, errors) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_it_leaves_no_process_and_the_next_one_begins_anew(tmp_path, large):
    child = start(large, tmp_path / "out", "--processes", 2)
    await_files(child, tmp_path / "out")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    await_no_process(child.pid)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    done = run(large, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal_it_leaves_nothing(tmp_path, large, number):
    child = start(large, tmp_path / "out")
    await_files(child, tmp_path / "out")
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []
