"""A Ray that is slower than its own patience is started once more; nothing of the first attempt stays."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from megarl.runtime.ray_start import start_local_ray

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


class SlowRay:
    """Stands for `ray.init`: starts a daemon, and fails so often."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __call__(self, **options: Any) -> dict[str, Any]:
        assert options["address"] == "local"
        path = str(Path(ray.__file__).parent / "core" / "raylet")
        self.daemons.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", path]))
        if len(self.daemons) <= self.failures:
            raise self.error
        return options


@pytest.fixture
def other() -> Any:
    """A child that is none of Ray's."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child
        child.kill()


def running(daemon: "subprocess.Popen[bytes]") -> bool:
    return daemon.poll() is None and psutil.pid_exists(daemon.pid)


def test_it_is_started_once_more(monkeypatch: pytest.MonkeyPatch, other: "subprocess.Popen[bytes]") -> None:
    slow = SlowRay(1, Exception(SLOW))
    monkeypatch.setattr(ray, "init", slow)
    assert start_local_ray(num_cpus=3)["num_cpus"] == 3
    first, second = slow.daemons
    assert (running(first), running(second), running(other)) == (False, True, True)
    second.kill()
    second.wait()


def test_a_machine_that_stays_busy_is_told(monkeypatch: pytest.MonkeyPatch, other: "subprocess.Popen[bytes]") -> None:
    slow = SlowRay(5, Exception(SLOW))
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(
        RuntimeError, match=r"within 30 s, 2 times in a row; this machine is too busy \(its load is \d+"
    ):
        start_local_ray()
    assert [running(daemon) for daemon in slow.daemons] == [False, False]
    assert running(other)


def test_other_failures_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowRay(1, ValueError("no such option"))
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ValueError, match="no such option"):
        start_local_ray()
    (daemon,) = slow.daemons
    daemon.kill()
    daemon.wait()
