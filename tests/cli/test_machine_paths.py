"""Where a run writes: what cannot work is one sentence with the path before anything starts."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.cli import machine_paths
from megarl.cli.machine_paths import describe_write_error, find_path_problems
from tests.config.text import load_small, write_config

VARIABLES = ("RAY_TMPDIR", "TMPDIR", "HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "HF_HOME")
VARIABLES += ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine_paths.tempfile, "tempdir", None)


def problems(directory: Path, *overrides: str, runs: Path | str | None = None) -> list[str]:
    runs = directory / "runs" if runs is None else runs
    return list(find_path_problems(load_small(directory, f'logging.directory="{runs}"', *overrides)))


def test_an_ordinary_machine_has_none(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    assert not (tmp_path / "runs").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run.toml"]


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_where_the_directory_should_be(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = problems(tmp_path, runs=f"{tmp_path}/file{below}")
    assert problem == (
        f'logging.directory "{tmp_path}/file{below}": {tmp_path}/file is a file, no directory; '
        "set logging.directory to a directory you may write to"
    )


def test_a_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    """/proc has directories and takes no file, not even from root."""
    (problem,) = problems(tmp_path, runs="/proc/runs")
    assert problem.startswith('logging.directory "/proc/runs": /proc cannot be written to (')
    assert problem.endswith("; set logging.directory to a directory you may write to")


def test_names_that_are_too_long(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, runs=tmp_path / ("r" * 300))
    assert "file names may have 255 bytes, and rrrr" in problem
    (problem,) = problems(tmp_path, f"name={'n' * 240}")
    assert problem.startswith("name: file names may have 255 bytes, and nnn")
    assert problems(tmp_path, f"name={'n' * 220}") == []
    (problem,) = problems(tmp_path, runs="/".join([str(tmp_path), *["p" * 200] * 30]))
    assert "a path may have 4096 bytes, and those of a run below it have more" in problem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room(small_disk: Path, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, runs=small_disk / "runs")
    assert f"the disk of {small_disk} has 1 MiB free; free space" in problem or "has 0 MiB free" in problem
    (small_disk / "filler").write_bytes(bytes(1 << 20))
    (problem,) = problems(tmp_path, runs=small_disk / "runs")
    assert "No space left on device" in problem


def test_a_full_disk_is_told_with_the_room_there_is(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        (small_disk / "metrics.jsonl").write_bytes(bytes(2 << 20))
    said = describe_write_error(error.value, small_disk / "metrics.jsonl")
    assert said == (
        f"{small_disk}/metrics.jsonl cannot be written: the disk is full (0 MiB free); free space, or write elsewhere"
    )
    other = describe_write_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/y"), Path("/x"))
    assert other == "/x/y cannot be written (Permission denied)"


@pytest.mark.parametrize(
    ("variable", "length", "who"),
    [("TMPDIR", 39, None), ("TMPDIR", 40, "Ray"), ("RAY_TMPDIR", 40, "Ray"), ("TMPDIR", 80, "Ray")],
)
def test_temporary_files_too_deep_for_sockets(
    variable: str, length: int, who: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = Path(f"/tmp/megarl-{os.getpid()}-")
    deep = Path(str(deep) + "d" * (length - len(str(deep))))
    deep.mkdir()
    try:
        monkeypatch.setenv(variable, str(deep))
        found = problems(tmp_path)
        joined = problems(tmp_path, "cluster.ray_address=auto")
    finally:
        deep.rmdir()
    assert len(found) == (who is not None)
    if who:
        assert found[0].startswith(f"{variable}={deep} has {length} bytes, but {who} makes sockets below it")
        assert found[0].endswith(f"at most 39 are left for it; set {variable}=/tmp or another short path")
    # A running cluster has sockets of its own; vLLM has its own in any case.
    assert len(joined) == (variable == "TMPDIR" and length > 70)


def test_temporary_files_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert problems(tmp_path) == [
        "TMPDIR=/nowhere: /nowhere is not there, no directory; set it to a directory you may write to, or unset it"
    ]


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nobody")
    (problem,) = problems(tmp_path)
    assert problem.startswith("HOME=/proc/nobody: /proc cannot be written to (")
    assert "vLLM's caches, vLLM's settings, Hugging Face's caches lie below it" in problem
    assert problem.endswith("; set HOME to a directory you may write to")
    # Variables that lead the caches elsewhere are enough.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CONFIG_ROOT", str(tmp_path / "settings"))
    assert problems(tmp_path) == []


FULL_RUN = """
import sys
from pathlib import Path
from megarl.cli.session import run_session
from megarl.config.loader import load_config
from megarl.controller.progress import RunProgress
from megarl.telemetry.columns import SFT_COLUMNS

async def work(session):
    await report(session, 1)
    room = open(session.directory.path / "checkpoints" / "filler", "wb", buffering=0)
    try:
        while room.write(bytes(1 << 12)):
            pass
    except OSError:
        pass
    for step in range(2, 9):
        await report(session, step)

async def report(session, step):
    with session.reporter.spans.measure("step"):
        pass
    session.reporter.report_sft(step, loss=1.0, metrics=METRICS, num_tokens=1)
    session.reporter.commit(RunProgress(step=step))
    await session.reporter.settle()

from megarl.telemetry.metrics import declared
METRICS = declared({"actor/entropy": 1.0, "actor/grad_norm": 1.0, "actor/lr": 1.0})
path = Path(sys.argv[1])
config = load_config(path, [f"logging.directory={sys.argv[2]}"])
sys.exit(run_session(config, work, sources=[path], verb="sft", steps=8, columns=SFT_COLUMNS))
"""


def test_a_disk_that_fills_up_during_the_run(small_disk: Path, tmp_path: Path) -> None:
    """The run ends with one sentence that names the file; nobody is shown a traceback."""
    command = [sys.executable, "-c", FULL_RUN, str(write_config(tmp_path)), str(small_disk / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 1, said
    assert "cannot be written: the disk is full (0 MiB free); free space, or write elsewhere" in lines[0]
    assert str(small_disk / "runs") in lines[0]
