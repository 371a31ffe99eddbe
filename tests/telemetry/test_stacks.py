"""What a process tells of itself, and what others get out of one that cannot run Python."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from megarl.telemetry.stacks import all_stacks, hear_stack_requests, own_stacks, stacks_of, write_stacks

CHILD = """
import ctypes, sys, time
from megarl.telemetry.stacks import hear_stack_requests
if sys.argv[1] != "deaf":
    hear_stack_requests()
    hear_stack_requests()
print("up", flush=True)

def hold_the_lock():
    library = ctypes.PyDLL(None)
    while True:
        library.sleep(60)

def let_it_go():
    time.sleep(600)

hold_the_lock() if sys.argv[1] == "holds" else let_it_go()
"""


@contextmanager
def child(how: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, how], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(0.2)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_process_that_holds_the_interpreters_lock_tells_where() -> None:
    """As often as it is asked, each time once."""
    with child("holds") as pid:
        for _ in range(2):
            told = stacks_of(pid, within_s=20.0)
            assert told.count("most recent call first") == 1
            assert re.search(
                r'File "<string>", line \d+ in hold_the_lock\n  File "<string>", line \d+ in <module>', told
            )


def test_a_stopped_process_is_said_to_be_stopped() -> None:
    with child("waits") as pid:
        assert "in let_it_go" in stacks_of(pid, within_s=20.0)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.1)
        assert stacks_of(pid) == "it is stopped (by SIGSTOP): a stopped process tells nothing until it goes on"
        os.kill(pid, signal.SIGCONT)
        assert "in let_it_go" in stacks_of(pid, within_s=20.0)
    assert stacks_of(pid) == "it is gone"


def test_a_process_that_is_not_prepared_is_left_alone() -> None:
    """The signal would end it."""
    with child("deaf") as pid:
        assert stacks_of(pid).endswith("and does not tell its stacks: it is only starting, or ending")
        assert Path(f"/proc/{pid}/cmdline").read_bytes() != b""


def test_own_threads_and_tasks() -> None:
    waiting = threading.Event()

    def in_a_thread() -> None:
        waiting.wait(60.0)

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        await asyncio.sleep(60.0)
        yield

    async def innermost() -> None:
        async with opened():
            pass

    async def outermost() -> None:
        await innermost()

    async def scenario() -> str:
        tasks = [asyncio.create_task(outermost()) for _ in range(3)]
        await asyncio.sleep(0)
        told = await asyncio.to_thread(own_stacks, [asyncio.get_running_loop()])
        for task in tasks:
            task.cancel()
        return told

    thread = threading.Thread(target=in_a_thread, name="some-thread")
    thread.start()
    try:
        told = asyncio.run(scenario())
    finally:
        waiting.set()
        thread.join()
    assert re.search(r"^thread some-thread\n(  .*\n)*  .*test_stacks\.py:\d+ in in_a_thread$", told, re.MULTILINE)
    assert re.search(r"^thread MainThread$", told, re.MULTILINE)
    # Through a context and what wraps it, from where each of the three waits.
    chain = (
        r"tasks\.py:\d+ in sleep",
        r":\d+ in opened",
        r":\d+ in __aenter__",
        r":\d+ in innermost",
        r":\d+ in outermost",
    )
    three = "^3 tasks" + "".join(rf"\n  .*{call}" for call in chain) + "$"
    assert re.search(three, told, re.MULTILINE)


def test_processes_below_tell_theirs_too() -> None:
    with child("waits") as pid, child("deaf") as deaf:
        told = all_stacks()
        assert told.startswith(f"process {os.getpid()}\n")
        assert re.search(rf"^process {pid} \(.*python.*\)$", told, re.MULTILINE)
        assert "in let_it_go" in told
        assert f"process {deaf}" not in told
        assert f"process {pid}" not in all_stacks(but=[pid])


def test_a_forked_process_does_not_answer_for_its_parent() -> None:
    """It has the same file in memory."""
    hear_stack_requests()
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    try:
        time.sleep(0.1)
        assert "test_a_forked_process" in stacks_of(pid, within_s=20.0)
        assert Path(f"/proc/{os.getpid()}").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_stacks_are_written_to_a_file_of_their_own(tmp_path: Path) -> None:
    first, second = write_stacks(tmp_path, "one"), write_stacks(tmp_path, "two\n", of="rollout-0")
    assert (first.read_text(), second.read_text()) == ("one\n", "two\n")
    assert re.fullmatch(r"stacks-\d{8}T\d{6}\.\d{6}Z\.txt", first.name)
    assert second.name.startswith("stacks-rollout-0-2")
