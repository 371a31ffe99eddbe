"""The process of a run: what its slot gives it."""

import os
import sys
import time
from pathlib import Path

import pytest

from megarl.ablation.processes import Slot, start_process

CHILD = "import os, subprocess, sys, time; time.sleep(0.5); subprocess.run([sys.executable, '-c', sys.argv[1]])"
GRANDCHILD = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['GIVEN'], os.environ['SEEN'])"


def said(folder: Path, slot: Slot) -> str:
    log = folder / "run.log"
    environment = os.environ | {"GIVEN": "of the driver", "SEEN": "of the driver"}
    command = [sys.executable, "-c", CHILD, GRANDCHILD]
    process = start_process(command, log=log, working_directory=folder, environment=environment, slot=slot)
    assert process.wait(timeout=60) == 0
    return log.read_text().splitlines()[-1]


def test_what_a_run_starts_keeps_to_the_cores_of_its_slot(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    slot = Slot({"SEEN": "of the slot"}, cores=frozenset({core}))
    assert said(tmp_path, slot) == f"[{core}] of the driver of the slot"
    assert said(tmp_path, Slot({})) == f"{sorted(os.sched_getaffinity(0))} of the driver of the driver"


def test_one_that_ends_at_once_is_no_error(tmp_path: Path) -> None:
    slot = Slot({}, cores=frozenset({min(os.sched_getaffinity(0))}))
    process = start_process(
        ["/bin/true"], log=tmp_path / "log", working_directory=tmp_path, environment=os.environ, slot=slot
    )
    time.sleep(0.1)
    assert process.wait(timeout=60) == 0


def test_cores_that_have_gone_leave_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(process: int, cores: frozenset[int]) -> None:
        asked.append(process)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    slot = Slot({}, cores=frozenset({0}))
    with pytest.raises(OSError, match="Invalid argument"):
        start_process(
            ["sleep", "60"], log=tmp_path / "log", working_directory=tmp_path, environment=os.environ, slot=slot
        )
    with pytest.raises(ProcessLookupError):
        os.kill(asked[0], 0)
