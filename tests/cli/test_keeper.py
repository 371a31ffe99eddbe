"""The keeper's process, as its files and its exit code tell; its Ray is a stand-in that leaves a process."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from megarl.cli import keeper
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.telemetry.keeper_file import KEEPER_FILE, KeeperFacts
from megarl.telemetry.process_mark import ProcessMark
from tests.e2e.configuration import write_tiny_config

ROOT = Path(__file__).parents[2]
PROGRAM = """
import subprocess, sys
from contextlib import asynccontextmanager
from pathlib import Path
from megarl.cli import keeper

directory = Path(sys.argv[1])

@asynccontextmanager
async def kept_ray(config):
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (directory / "left").write_text(str(left.pid))
    yield "127.0.0.1:6379"
    note("ray")

async def end_kept_engines(count):
    note(f"engines {count} {keeper.KeeperFacts.read(directory).status}")

def note(what):
    with (directory / "ended").open("a") as file:
        file.write(what + "\\n")

keeper.kept_ray, keeper.end_kept_engines = kept_ray, end_kept_engines
sys.exit(keeper.main(sys.argv[1:]))
"""


class Scene:
    """A keeper, and its directory."""

    def __init__(self, folder: Path) -> None:
        self.config, self.directory = write_tiny_config(folder, folder), folder / "keeper"
        (self.directory / "logs").mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", PROGRAM, str(self.directory), str(self.config), "rollout.engines=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, cwd=ROOT)
        return self.process

    def facts(self) -> KeeperFacts:
        found = KeeperFacts.read(self.directory)
        assert found is not None
        return found

    def wait_until(self, status: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.directory / KEEPER_FILE).exists() or self.facts().status != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize("how", ["told", "left alone"])
def test_it_ends_with_all_that_it_has(how: str, scene: Scene) -> None:
    process = scene.start()
    scene.wait_until("ready")
    facts = scene.facts()
    assert (facts.process, facts.owner) == (ProcessMark.of(process.pid), ProcessMark.of(os.getpid()))
    assert facts.address == "127.0.0.1:6379"
    left = ProcessMark.of(int((scene.directory / "left").read_text()))
    process.send_signal(signal.SIGINT)  # a Ctrl-C is its owner's
    time.sleep(0.3)
    assert process.poll() is None
    if how == "told":
        process.send_signal(signal.SIGTERM)
        while not (scene.directory / "ended").exists() or "ray" not in (scene.directory / "ended").read_text():
            time.sleep(0.05)
        time.sleep(0.5)  # it waits for what it has started, and a scheduler tells it too
        process.send_signal(signal.SIGTERM)
    else:
        assert process.stdin is not None
        process.stdin.close()
    assert process.wait(60) == 0
    assert (scene.directory / "ended").read_text() == "engines 2 ending\nray\n"
    assert left.standing() == "dead"


@pytest.mark.parametrize(
    ("error", "refused"), [(ConfigError("this machine has 1 CPU"), True), (RuntimeError("Ray broke"), False)]
)
def test_it_says_why_there_is_no_ray(
    error: Exception,
    refused: bool,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signals: None,
) -> None:
    @asynccontextmanager
    async def no_ray(_: RunConfig) -> AsyncIterator[str]:
        raise error
        yield ""

    monkeypatch.setattr(keeper, "kept_ray", no_ray)
    monkeypatch.setattr(keeper, "setup_logging", lambda *_: None)
    monkeypatch.setattr(keeper, "_read_to_end", lambda _: None)
    assert keeper.main([str(scene.directory), str(scene.config)]) == 1
    facts = scene.facts()
    assert (facts.status, facts.problem, facts.refused) == ("failed", str(error), refused)
    assert f"Ray did not start: {error}" in capsys.readouterr().err


def test_on_a_full_disk_engines_end_in_order(scene: Scene, monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    ended: list[int] = []

    @asynccontextmanager
    async def ray(_: RunConfig) -> AsyncIterator[str]:
        yield "127.0.0.1:6379"

    async def end_kept_engines(count: int) -> None:
        ended.append(count)

    def write(facts: KeeperFacts, _: Path) -> None:
        if facts.status == "ending":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeper, "kept_ray", ray)
    monkeypatch.setattr(keeper, "end_kept_engines", end_kept_engines)
    monkeypatch.setattr(keeper, "setup_logging", lambda *_: None)
    monkeypatch.setattr(keeper, "_read_to_end", lambda tell: tell())
    monkeypatch.setattr(KeeperFacts, "write", write)
    assert keeper.main([str(scene.directory), str(scene.config), "rollout.engines=2"]) == 0
    assert ended == [2]


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_damaged_facts_are_said_to_be(tmp_path: Path) -> None:
    assert KeeperFacts.read(tmp_path) is None
    (tmp_path / KEEPER_FILE).write_text('{"status": "ready"}')
    with pytest.raises(ValueError, match=r"keeper\.json is damaged: KeyError"):
        KeeperFacts.read(tmp_path)
