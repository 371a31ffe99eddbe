"""What the processes below an engine leave in /dev/shm."""

import multiprocessing
import os
import time
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil

from megarl.rollout.processes import ChildProcesses


def hold(event: Event, ready: Event) -> None:
    ready.set()
    event.wait()


def test_semaphores_of_a_killed_process_are_removed() -> None:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()
    processes = ChildProcesses()
    before = set(Path("/dev/shm").glob("sem.mp-*"))
    event, ready = context.Event(), context.Event()
    made = set(Path("/dev/shm").glob("sem.mp-*")) - before
    own = {path for path in made if path.stat().st_uid == os.getuid()}
    assert own
    child = context.Process(target=hold, args=(event, ready))
    child.start()
    assert ready.wait(60)
    deadline = time.monotonic() + 10
    while not processes.files & own and time.monotonic() < deadline:
        processes.find()
    noted = processes.files & own
    assert noted
    processes.end(grace_s=0.0)
    assert child.pid is not None
    assert not psutil.pid_exists(child.pid)
    assert all(path.exists() for path in noted)  # their maker has them still
    processes.remove_semaphores()
    assert not any(path.exists() for path in noted)
    assert processes.files == set()
    # Their maker would complain as it forgets them; another semaphore of the name lets it go in peace.
    for path in noted:
        path.touch()
