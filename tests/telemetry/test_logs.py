"""What a process says is in its log file, C code and crashes included."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.telemetry.logs import setup_logging, tail

WORKER = """
import ctypes, logging, os, sys
from pathlib import Path
from megarl.telemetry.logs import redirect_output, setup_logging
folder = Path(sys.argv[1])
redirect_output(folder / "engine-0.log")
setup_logging("engine", 0, folder)
print("printed")
print("to stderr", file=sys.stderr)
logging.getLogger("megarl.rollout").info("logged")
os.system("echo child")
ctypes.CDLL(None).printf(b"from C\\n")
if sys.argv[2] == "crash":
    ctypes.string_at(0)
os._exit(0)  # flushes nothing
"""


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, megarl = logging.getLogger(), logging.getLogger("megarl")
    before = list(root.handlers), root.level, megarl.level
    yield
    for handler in root.handlers[:]:
        if handler not in before[0]:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(before[1])
    megarl.setLevel(before[2])
    logging.captureWarnings(False)


def run_worker(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WORKER, str(folder), how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_output_of_a_worker_lands_in_its_file_once(tmp_path: Path) -> None:
    done = run_worker(tmp_path, "exit")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = (tmp_path / "engine-0.log").read_text().splitlines()
    assert [line for line in lines if "logged" not in line] == ["printed", "to stderr", "child", "from C"]
    (logged,) = [line for line in lines if "logged" in line]
    assert logged.endswith("INFO    engine-0 megarl.rollout: logged")


def test_a_crash_leaves_the_python_stack(tmp_path: Path) -> None:
    done = run_worker(tmp_path, "crash")
    assert done.returncode < 0
    text = tail(tmp_path / "engine-0.log")
    assert "Fatal Python error: Segmentation fault" in text
    assert 'File "<string>"' in text


def test_only_rank_0_speaks_and_every_rank_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("megarl.policy")
    setup_logging("policy", 1, tmp_path)
    log.warning("from rank one")
    assert capsys.readouterr().err == ""
    assert "WARNING policy-1 megarl.policy: from rank one" in tail(tmp_path / "policy-1.log")

    setup_logging("policy", 0, tmp_path)
    setup_logging("policy", 0, tmp_path)  # a second call does not double the lines
    log.info("loud")
    log.debug("quiet")
    logging.getLogger("elsewhere").debug("noise")
    assert capsys.readouterr().err.count("loud") == 1
    text = tail(tmp_path / "policy-0.log")
    assert (text.count("loud"), text.count("quiet"), text.count("noise")) == (1, 1, 0)
    assert "loud" not in tail(tmp_path / "policy-1.log")


def test_tail_gives_the_last_lines_or_says_that_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "policy-0.log"
    path.write_bytes(b"one\ntwo \xff\nthree\n")
    assert tail(path, 2) == "two \ufffd\nthree"
    assert tail(path, 9).count("\n") == 2
    assert "does not exist" in tail(tmp_path / "none.log")
