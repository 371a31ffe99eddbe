"""A child ends with its parent, however many files that has open."""

import os
import resource
import signal
import subprocess
import sys

import pytest

CHILD = "import sys, time; from megarl.telemetry.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]))\n"
WAITS = CHILD + "print('armed', flush=True); time.sleep(600)"
ENDS = CHILD + "print('armed', flush=True)"


def start(program: str, life_fd: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(life_fd)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[life_fd], start_new_session=True)


@pytest.fixture(params=["low", "high"])
def life(request: pytest.FixtureRequest) -> tuple[int, int]:
    """(the child's end, the parent's), the former above or below what select() takes."""
    child_end, own_end = os.pipe()
    if request.param == "high":
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1500:
            pytest.skip("no descriptor so high is allowed here")
        os.dup2(child_end, 1500)
        os.close(child_end)
        child_end = 1500
    return child_end, own_end


def test_it_lives_while_the_parent_does(life: tuple[int, int]) -> None:
    child_end, own_end = life
    with start(WAITS, child_end) as child:
        os.close(child_end)
        assert child.stdout is not None
        assert child.stdout.readline() == "armed\n"
        os.close(own_end)
        assert child.wait(60) == -signal.SIGIO


def test_a_parent_that_went_before_is_noticed(life: tuple[int, int]) -> None:
    child_end, own_end = life
    os.close(own_end)
    with start(ENDS, child_end) as child:
        os.close(child_end)
        assert (child.wait(60), child.stdout.read() if child.stdout else None) == (1, "")
