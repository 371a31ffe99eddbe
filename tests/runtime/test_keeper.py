"""What a run finds of a keeper, when it leaves the engines to the next run, and when it ends them. Needs no Ray."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.engine_shape import describe_engines, name_shape
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.runtime import keeper as module
from megarl.runtime.keeper import Keeper, KeeperLost
from megarl.telemetry.keeper_file import KEEPER_FILE, KEEPER_PROCESS_VARIABLE, KEEPER_VARIABLE, KeeperFacts
from megarl.telemetry.process_mark import DRIVER_VARIABLE, RUN_VARIABLE, ProcessMark
from tests.e2e.configuration import write_tiny_config

IGNORING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
HEARING = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(write_tiny_config(tmp_path, Path("/models/tiny")))


class Owned:
    """A keeper's directory, and a process that stands for the keeper."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, program: str = HEARING, **facts: Any) -> Keeper:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        self.processes.append(process)
        mark, owner = ProcessMark.of(process.pid), ProcessMark.of(os.getpid())
        self.facts = replace(KeeperFacts(status="ready", process=mark, owner=owner, address="127.0.0.1:1"), **facts)
        self.facts.write(self.directory)
        return Keeper(self.directory)

    @property
    def lives(self) -> bool:
        return self.facts.process.standing() == "alive"


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Owned]:
    (tmp_path / "keeper" / "logs").mkdir(parents=True)
    found = Owned(tmp_path / "keeper")
    yield found
    for process in found.processes:
        process.kill()
        process.wait()


def test_a_run_without_one_has_its_own_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEEPER_VARIABLE, raising=False)
    assert Keeper.given() is None
    monkeypatch.setenv(KEEPER_VARIABLE, str(tmp_path))
    given = Keeper.given()
    assert given is not None
    assert given.directory == tmp_path


def test_its_ray_is_waited_for(owned: Owned) -> None:
    keeper = owned.start(status="starting", address="")

    async def scenario(address: str) -> str:
        finding = asyncio.ensure_future(keeper.find_ray())
        await asyncio.sleep(0.3)
        assert not finding.done()
        replace(owned.facts, status="ready", address=address).write(owned.directory)
        return (await finding).text

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert asyncio.run(scenario(address)) == address
    with pytest.raises(KeeperLost, match="does not answer"):
        asyncio.run(keeper.find_ray())


@pytest.mark.parametrize(
    ("facts", "error", "text"),
    [
        ({"status": "failed", "problem": "too few CPUs", "refused": True}, ConfigError, "^too few CPUs$"),
        ({"status": "failed", "problem": "Ray broke"}, KeeperLost, "^Ray broke$"),
        ({"status": "ending"}, KeeperLost, "has ended"),
    ],
)
def test_a_run_hears_that_there_is_no_ray(
    facts: dict[str, Any], error: type[Exception], text: str, owned: Owned
) -> None:
    with pytest.raises(error, match=text):
        asyncio.run(owned.start(**facts).find_ray())


def test_a_run_hears_that_its_keeper_is_gone(owned: Owned) -> None:
    keeper = owned.start(status="starting")
    owned.processes[0].kill()
    owned.processes[0].wait()
    with pytest.raises(KeeperLost, match="has ended"):
        asyncio.run(keeper.find_ray())


def test_a_run_hears_that_its_keeper_never_said_anything(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    owned.start()
    (owned.directory / KEEPER_FILE).unlink()
    monkeypatch.setenv(KEEPER_VARIABLE, str(owned.directory))
    monkeypatch.setenv(KEEPER_PROCESS_VARIABLE, str(owned.facts.process))
    keeper = Keeper.given()
    assert keeper is not None

    async def scenario() -> None:
        finding = asyncio.ensure_future(keeper.find_ray())
        await asyncio.sleep(0.3)
        assert not finding.done()
        owned.processes[0].kill()
        owned.processes[0].wait()
        await asyncio.wait_for(finding, 10)

    with pytest.raises(KeeperLost, match=r"has ended at once; see .*/logs/keeper\.log$"):
        asyncio.run(scenario())


def test_what_engines_are_made_of_is_their_shape(config: RunConfig) -> None:
    def other(**sections: dict[str, Any]) -> RunConfig:
        values = config.model_dump()
        for section, changed in sections.items():
            values[section] |= changed
        return RunConfig.model_validate(values)

    same = [
        other(train={"seed": 5, "steps": 9}),
        other(objective={"clip": {"low": 0.1, "high": 9.0}}),
        other(policy={"optimizer": {"lr": 0.1}}),
        other(reward={"workers": 2}),
        other(data={"instruction": "Think."}),
    ]
    different = [
        other(rollout={"temperature": 0.5}),
        other(rollout={"engines": 2}),
        other(model={"dtype": "bfloat16"}),
        other(model={"path": "/models/other"}),
        other(parallel={"tensor": 1}),
        other(cluster={"gpus_per_node": 4}),
        other(data={"chat_template": False}),
    ]
    assert {name_shape(each) for each in same} == {name_shape(config)}
    assert len({name_shape(each) for each in (config, *different)}) == 8
    assert describe_engines(same[0]) == describe_engines(config)


def test_engines_of_another_shape_are_refused(owned: Owned, config: RunConfig) -> None:
    first = owned.start()
    first.check_shape(config, (1, 2))  # there are none yet
    assert first.trust(config, (1, 2))
    second = Keeper(owned.directory)
    assert second.has_engines
    second.check_shape(config, (1, 2))
    with pytest.raises(KeeperLost, match=r"with another stop_token_ids$"):
        second.check_shape(config, (1,))
    warmer = config.model_copy(update={"rollout": config.rollout.model_copy(update={"temperature": 0.5})})
    with pytest.raises(KeeperLost, match=r"with another rollout$"):
        second.check_shape(warmer, (1, 2))


def test_processes_that_stay_are_marked_as_the_keepers(owned: Owned) -> None:
    keeper = owned.start()
    assert keeper.marks == {DRIVER_VARIABLE: str(owned.facts.process), RUN_VARIABLE: str(owned.directory)}


def test_a_run_that_ends_well_leaves_it(owned: Owned, config: RunConfig) -> None:
    keeper = owned.start()
    assert keeper.trust(config, ())
    asyncio.run(keeper.close())
    assert owned.lives


def fail(keeper: Keeper, config: RunConfig) -> None:
    """Nothing is said."""


def lose(keeper: Keeper, config: RunConfig) -> None:
    keeper.doubt("an engine was lost")
    assert not keeper.trust(config, ())
    assert not Keeper(keeper.directory).has_engines


def lose_late(keeper: Keeper, config: RunConfig) -> None:
    keeper.trust(config, ())
    keeper.doubt("late")


def fill_the_disk(keeper: Keeper, config: RunConfig) -> None:
    (keeper.directory / "engines.json").mkdir()  # which no file can replace
    assert not keeper.trust(config, ())


@pytest.mark.parametrize("how", [fail, lose, lose_late, fill_the_disk])
def test_any_other_run_ends_it_and_waits_until_it_is_gone(
    how: Callable[[Keeper, RunConfig], None], owned: Owned, config: RunConfig
) -> None:
    keeper = owned.start()
    how(keeper, config)
    asyncio.run(keeper.close())
    assert not owned.lives
    assert owned.processes[0].wait() == -signal.SIGTERM


def test_one_that_does_not_end_is_killed(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_LIMIT_S", 0.3)
    asyncio.run(owned.start(IGNORING).close())
    assert owned.processes[0].wait() == -signal.SIGKILL


def test_a_run_whose_driver_is_gone_ends_it(owned: Owned, config: RunConfig) -> None:
    process = subprocess.Popen(["true"])
    gone_mark = replace(ProcessMark.of(os.getpid()), pid=process.pid, started=1)
    process.wait()
    keeper = owned.start(owner=gone_mark)
    keeper.trust(config, ())
    asyncio.run(keeper.close())
    assert not owned.lives


def test_the_runs_log_is_its_part_of_the_engines(owned: Owned, tmp_path: Path) -> None:
    runs = []
    for number in range(2):
        keeper, path = owned.start(), tmp_path / f"run{number}" / "logs" / "rollout-0.log"
        own = keeper.begin_log(path)
        assert own == owned.directory / "logs" / "rollout-0.log"
        with own.open("a") as file:
            file.write(f"said in run {number}\n")
        assert keeper.begin_log(path) == own  # as of an engine that was replaced
        assert str(own) in path.read_text()
        keeper.end_logs()
        keeper.end_logs()
        runs.append(path.read_text().splitlines())
    assert [lines[1:] for lines in runs] == [["said in run 0"], ["said in run 1"]]
    assert [lines[0].startswith("--- this engine outlives the run") for lines in runs] == [True, True]
