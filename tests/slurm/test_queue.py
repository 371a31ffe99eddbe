"""What Slurm's commands say, and that they may not be there."""

from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.slurm import queue
from megarl.slurm.queue import Queued, find_queued, has_slurm, parse_queue, submit_script, try_script

LISTING = """\
7_0|RUNNING|1:02|30:00|n[1-2]|None|2026-11-28T14:00:00
7_1|PENDING|0:00|30:00||JobArrayTaskLimit|N/A
8|PENDING|0:00|UNLIMITED||BeginTime|2026-11-28T15:00:00
9|COMPLETED|0:31|30:00|n1|None|2026-11-28T13:00:00
"""


def test_the_queue_as_squeue_lists_it() -> None:
    found = parse_queue(LISTING)
    assert {number: str(queued) for number, queued in found.items()} == {
        "7_0": "RUNNING 1:02 of 30:00 on n[1-2]",
        "7_1": "PENDING (JobArrayTaskLimit)",
        "8": "PENDING (BeginTime, expected 2026-11-28T15:00:00)",
        "9": "COMPLETED 0:31 of 30:00 on n1",
    }
    assert found["7_1"] == Queued(
        state="PENDING", elapsed="0:00", limit="30:00", nodes="", reason="JobArrayTaskLimit", start="N/A"
    )
    assert parse_queue("") == {}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_words_of_slurm_reach_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script = tmp_path / "job.sbatch"
    program(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    assert has_slurm()
    assert try_script("#!/bin/sh\n") == (False, "invalid partition specified: gpu")
    with pytest.raises(ConfigError, match=rf"Slurm does not take {script}: invalid partition specified: gpu"):
        submit_script(script)
    program(tmp_path, "sbatch", "[ \"$1\" = --test-only ] && { cat >&2; exit 0; }; echo '17;cluster'")
    assert try_script("sbatch: Job 3 to start at noon\n") == (True, "Job 3 to start at noon")
    assert submit_script(script) == "17"
    program(tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert find_queued("17") == {}
    program(tmp_path, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ConfigError, match="squeue does not answer: Unable to contact slurm controller"):
        find_queued("17")
    program(tmp_path, "squeue", "exec sleep 5")
    monkeypatch.setattr(queue, "_TIMEOUT_S", 0.2)
    with pytest.raises(ConfigError, match=r"squeue did not answer within 0\.2 s"):
        find_queued("17")


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_slurm()
    with pytest.raises(ConfigError, match="sbatch is not on this machine; run this where jobs are submitted"):
        try_script("")
