"""What killed runs leave is found and removed; what is alive, or not megarl's, is not touched."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.rewards.environment import worker_environment
from megarl.runtime.leftovers import (
    Leftover,
    clean_leftovers,
    end_earlier_worker,
    end_run_processes,
    find_leftovers,
    marked_process,
)
from megarl.telemetry.leases import SHM, Lease, find_leases
from megarl.telemetry.process_mark import DRIVER_VARIABLE, RUN_VARIABLE, WORKER_VARIABLE, ProcessMark, start_ticks
from megarl.telemetry.run_directory import judge_running


@pytest.fixture
def run(tmp_path: Path) -> str:
    return f"{tmp_path}/run-{uuid.uuid4().hex}"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where leases of this test go."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def mark_of_the_dead() -> ProcessMark:
    """Of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = ProcessMark.of(process.pid)
    process.communicate(b"\n")
    return mark


@contextmanager
def sleeper(driver: ProcessMark | None, run: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process as a run starts them."""
    marks = {} if driver is None else {DRIVER_VARIABLE: str(driver), RUN_VARIABLE: run}
    process = subprocess.Popen(["sleep", "600"], env=os.environ | marks)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def of_run(found: list[Leftover], run: str) -> list[Leftover]:
    return [leftover for leftover in found if leftover.run == run]


def test_a_mark_names_one_process_for_ever() -> None:
    mine = ProcessMark.of(os.getpid())
    assert ProcessMark.parse(str(mine)) == mine
    assert ProcessMark.from_json(mine.as_json()) == mine
    assert mine.standing() == "alive"
    assert replace(mine, started=mine.started - 1).standing() == "dead"  # the number was given away again
    assert replace(mine, boot="another").standing() == "dead"  # the machine was started anew
    assert replace(mine, boot="another", host="another").standing() == "elsewhere"
    assert replace(mine, namespace="pid:[1]").standing() == "elsewhere"
    assert mark_of_the_dead().standing() == "dead"
    with pytest.raises(ProcessLookupError):
        ProcessMark.of(2**22 + 1)


def test_scoring_processes_carry_the_mark_though_little_else_of_the_environment() -> None:
    marks = {DRIVER_VARIABLE: str(ProcessMark.of(os.getpid())), RUN_VARIABLE: "/runs/x"}
    assert worker_environment(marks | {"ANYTHING": "x"}) == marks


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = ProcessMark.of(process.pid)
    assert mark.standing() == "alive"
    assert process.stdin is not None
    process.stdin.close()
    until = time.monotonic() + 60.0
    while start_ticks(process.pid) is not None and time.monotonic() < until:
        time.sleep(0.01)
    # Nobody has waited for it: /proc still lists it.
    assert Path(f"/proc/{process.pid}/stat").is_file()
    assert mark.standing() == "dead"
    process.wait()


def test_a_process_whose_driver_is_gone_is_killed_stopped_or_not(run: str) -> None:
    with sleeper(mark_of_the_dead(), run) as orphan, sleeper(mark_of_the_dead(), run) as stopped:
        os.kill(stopped.pid, 19)
        found = of_run(find_leftovers(), run)
        assert {leftover.pid for leftover in found} == {orphan.pid, stopped.pid}
        assert all("sleep 600" in leftover.name for leftover in found)
        clean_leftovers(found)
        assert (orphan.wait(5), stopped.wait(5)) == (-9, -9)
        assert of_run(find_leftovers(), run) == []


def test_processes_of_a_live_run_of_another_machine_and_of_nobody_are_left_alone(run: str) -> None:
    mine = ProcessMark.of(os.getpid())
    elsewhere = replace(mine, host="another", boot="another")
    with sleeper(mine, run) as live, sleeper(elsewhere, run) as far, sleeper(None, run) as other:
        assert of_run(find_leftovers(), run) == []
        assert other.pid not in {leftover.pid for leftover in find_leftovers()}
        assert [process.poll() for process in (live, far, other)] == [None] * 3
        # At the end of its own run, the driver takes its own.
        assert {leftover.pid for leftover in of_run(find_leftovers(ended=mine), run)} == {live.pid}


def test_a_process_below_one_of_the_run_goes_with_it_though_it_lost_its_mark(run: str) -> None:
    """Ray's agents overwrite their environment with the name they show."""
    marks = {DRIVER_VARIABLE: str(mark_of_the_dead()), RUN_VARIABLE: run}
    another = {DRIVER_VARIABLE: str(ProcessMark.of(os.getpid())), RUN_VARIABLE: "a live run"}
    start = (
        "import subprocess; "
        "mine = subprocess.Popen(['sleep', '600'], env={}); "
        f"other = subprocess.Popen(['sleep', '600'], env={another}); "
        "print(mine.pid, other.pid, flush=True); mine.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", start], env=os.environ | marks, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child, other = map(int, parent.stdout.readline().split())
    try:
        assert {leftover.pid for leftover in of_run(find_leftovers(), run)} == {parent.pid, child}
    finally:
        for pid in (parent.pid, child, other):
            os.kill(pid, 9)
        parent.wait()


def test_the_end_of_a_run_takes_the_files_of_a_process_that_lived_until_then(
    run: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ProcessMark.of(os.getpid())
    monkeypatch.setenv(RUN_VARIABLE, run)
    with sleeper(mine, run) as process:
        lease = replace(Lease.take("engine"), owner=ProcessMark.of(process.pid), driver=mine, run=run)
        lease.note([])
        assert [leftover.kind for leftover in end_run_processes(grace_s=0.0)] == ["process", "directory"]
        assert not lease.path.exists()
        assert process.wait(5) == -9


def test_a_number_given_away_again_is_not_killed(run: str) -> None:
    with sleeper(mark_of_the_dead(), run) as process:
        (found,) = of_run(find_leftovers(), run)
        clean_leftovers([replace(found, started=found.started - 1)])
        assert process.poll() is None


def test_the_end_of_a_run_waits_for_its_processes_and_kills_what_stays(
    run: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ProcessMark.of(os.getpid())
    monkeypatch.setenv(RUN_VARIABLE, run)
    lease = replace(Lease.take("run"), run=run)
    lease.note([])
    with sleeper(mine, run) as stays, sleeper(mine, "another run") as other:
        started = time.monotonic()
        found = end_run_processes(grace_s=0.5)
        assert time.monotonic() - started >= 0.5
        assert [leftover.pid for leftover in found] == [stays.pid, 0]
        assert not lease.path.exists()
        assert stays.wait(5) == -9
        assert other.poll() is None


def make_lease(owner: ProcessMark, run: str, extra: list[Path]) -> Lease:
    lease = replace(Lease.take("engine"), owner=owner, driver=owner, run=run)
    lease.note(extra)
    return lease


def test_files_of_a_dead_owner_go_and_those_of_a_live_one_stay(run: str, temporary: Path) -> None:
    dead, mine = mark_of_the_dead(), ProcessMark.of(os.getpid())
    files = [SHM / f"psm_{uuid.uuid4().hex}" for _ in range(2)]
    session = temporary / "session_of_ray"
    session.mkdir()
    (session / "log").write_bytes(bytes(2**20))
    not_ours = temporary / "precious"
    not_ours.write_text("kept")
    try:
        for file in files:
            file.write_bytes(bytes(100))
        orphan = make_lease(dead, run, [files[0], session, not_ours])
        live = make_lease(mine, run, [files[1]])
        assert {lease.path for lease in find_leases()} == {orphan.path, live.path}
        found = of_run(find_leftovers(), run)
        assert [leftover.path for leftover in found] == [files[0], session, orphan.path]
        assert "1.0 MiB" in found[1].name
        clean_leftovers(found)
        assert not files[0].exists()
        assert files[1].exists()
        assert not session.exists()
        assert not orphan.path.exists()
        assert live.path.exists()
        assert not_ours.exists()
        live.release()
        live.release()
        assert list(find_leases()) == []
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_shared_memory_that_somebody_maps_stays(run: str, temporary: Path) -> None:
    import mmap

    path = SHM / f"psm_{uuid.uuid4().hex}"
    path.write_bytes(bytes(4096))
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            lease = make_lease(mark_of_the_dead(), run, [path])
            assert [leftover.path for leftover in of_run(find_leftovers(), run)] == [lease.path]
        assert path in {leftover.path for leftover in of_run(find_leftovers(), run)}
    finally:
        path.unlink()


def test_an_owner_that_died_in_a_live_run_is_not_judged_yet(run: str, temporary: Path) -> None:
    mine = ProcessMark.of(os.getpid())
    lease = replace(make_lease(mark_of_the_dead(), run, []), driver=mine)
    lease.note([])
    assert of_run(find_leftovers(), run) == []
    assert [leftover.path for leftover in of_run(find_leftovers(ended=mine), run)] == [lease.path]


END_EARLIER = """
import subprocess
child = subprocess.Popen(["sleep", "600"])
from megarl.runtime.leftovers import end_earlier_worker
for leftover in end_earlier_worker():
    print(leftover.kind, leftover.pid or leftover.path)
assert child.poll() is None
child.kill()
"""


def test_a_worker_ends_what_an_earlier_one_in_its_place_left(run: str, temporary: Path) -> None:
    """Of no other worker, of no other run, and nothing of its own; a stopped process and what its mark is lost from."""
    driver = ProcessMark.of(os.getpid())

    def marks(worker: str, driver: ProcessMark = driver) -> dict[str, str]:
        return os.environ | {DRIVER_VARIABLE: str(driver), RUN_VARIABLE: run, WORKER_VARIABLE: worker}

    sleep = ["sleep", "600"]
    another = replace(driver, started=driver.started - 1)
    orphan, stopped, *others = (
        subprocess.Popen(sleep, env=environment)
        for environment in (marks("rollout-1"), marks("rollout-1"), marks("rollout-0"), marks("rollout-1", another))
    )
    leases = [
        replace(make_lease(mark_of_the_dead(), run, []), driver=driver, worker=worker)
        for worker in ("rollout-1", "rollout-0")
    ]
    for lease in leases:
        lease.note([])
    try:
        os.kill(stopped.pid, 19)
        told = subprocess.run(
            [sys.executable, "-c", END_EARLIER],
            env=marks("rollout-1") | {"TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        assert set(told) == {f"process {orphan.pid}", f"process {stopped.pid}", f"directory {leases[0].path}", ""}
        assert (orphan.wait(5), stopped.wait(5)) == (-9, -9)
        assert [process.poll() for process in others] == [None, None]
        assert [lease.path.exists() for lease in leases] == [False, True]
    finally:
        for process in (orphan, stopped, *others):
            process.kill()
            process.wait()


def test_outside_of_a_run_there_is_no_earlier_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER_VARIABLE, raising=False)
    assert end_earlier_worker() == []


@pytest.mark.parametrize("text", ["", "{", '{"owner": 3}', "[]"])
def test_what_is_no_lease_is_left_alone(text: str, temporary: Path) -> None:
    (temporary / "megarl-engine-x").mkdir()
    (temporary / "megarl-engine-x" / "owner.json").write_text(text)
    assert list(find_leases()) == []


def test_a_link_to_a_lease_is_no_lease(run: str, temporary: Path, tmp_path: Path) -> None:
    """Anybody may make links where temporary files go, and what they point at is kept."""
    kept = make_lease(mark_of_the_dead(), run, [])
    kept = replace(kept, path=kept.path.rename(tmp_path / "kept"))
    (temporary / "megarl-engine-whole").symlink_to(kept.path)
    (temporary / "megarl-engine-file").mkdir()
    (temporary / "megarl-engine-file" / "owner.json").symlink_to(kept.path / "owner.json")
    assert list(find_leases()) == []


def test_a_lease_that_somebody_swept_away_ends_in_order(temporary: Path) -> None:
    """As machines do with files in /tmp that are some days old."""
    lease = Lease.take("run")
    lease.note([temporary / "session_of_ray"])
    assert lease.extra() == [temporary / "session_of_ray"]
    (lease.path / "owner.json").unlink()
    assert lease.extra() == []
    lease.release()
    assert not lease.path.exists()


def test_what_is_started_after_a_run_is_not_of_it(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DRIVER_VARIABLE, raising=False)
    monkeypatch.setenv(RUN_VARIABLE, "of a run around it")
    with marked_process(Path(run)):
        assert os.environ[DRIVER_VARIABLE] == str(ProcessMark.of(os.getpid()))
        assert os.environ[RUN_VARIABLE] == run
    assert DRIVER_VARIABLE not in os.environ
    assert os.environ[RUN_VARIABLE] == "of a run around it"


def test_another_machine_of_this_name_is_not_this_one_before_a_restart(run: str, temporary: Path) -> None:
    """Its clock says so: what it did lately is younger than the boot of this machine."""
    twin = replace(ProcessMark.of(os.getpid()), boot="another")
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert twin.standing(age_s=up_s / 2) == "elsewhere"
    assert twin.standing(age_s=up_s + 60) == "dead"
    assert judge_running(twin, age_s=min(5.0, up_s / 2)) == ("running", None)
    lease = make_lease(twin, run, [])
    assert of_run(find_leftovers(), run) == []
    before_s = time.time() - up_s - 60
    os.utime(lease.path / "owner.json", (before_s, before_s))
    assert [leftover.path for leftover in of_run(find_leftovers(), run)] == [lease.path]
