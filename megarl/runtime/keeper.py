"""Ray and engines that outlive a run: a keeper's, as one run uses them (`cli.keeper` is the keeper's own process).

Who owns what:

    keeper   Ray, the engines' actors and vLLM's processes, the reserved places, the engines' logs
    run      the policy ranks, rewards, connections for publications, its directory, its log

A run that ends well leaves engines that answer, and says of what shape they are; the next one finds them with the
weights that the last one had, so it publishes its own before it samples. After anything else (a failure, a signal, an
engine that was lost, a run of which nobody will start another) the run ends the keeper with all that it has, and waits
until it is gone: whoever comes next starts from nothing. What a run that was killed cannot do, the keeper's owner does.
"""

import asyncio
import json
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from megarl.config.base import ConfigError
from megarl.config.engine_shape import describe_engines
from megarl.config.run import RunConfig
from megarl.runtime.ray_address import RayAddress
from megarl.runtime.ray_start import NAMESPACE
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.keeper_file import KEEPER_PROCESS_VARIABLE, KEEPER_VARIABLE, KeeperFacts
from megarl.telemetry.process_mark import DRIVER_VARIABLE, RUN_VARIABLE, ProcessMark

GROUP = "workers"
_ENGINES = "engines.json"
"""In the keeper's directory, once engines may be used by the next run: their shape."""
_START_LIMIT_S = 300.0
_CONNECT_LIMIT_S = 5.0
_END_LIMIT_S = 60.0
"""With what a run closes before, less than cli.interrupts gives its end."""
_POLL_S = 0.1

_log = logging.getLogger(__name__)


class KeeperLost(RuntimeError):
    """The keeper has ended, or its engines are not what the run needs."""


class Keeper:
    """Of one run, for as long as that uses it."""

    def __init__(self, directory: Path, process: ProcessMark | None = None) -> None:
        """process: the keeper's, where that is known before it has said anything."""
        self.directory, self._process = directory, process
        self.has_engines = (directory / _ENGINES).is_file()
        """Of a run before this one; they have its weights."""
        self._ended_well = False
        self._doubts: list[str] = []
        """Why nobody else may use the engines, though the run ends well."""
        self._logs: dict[Path, tuple[Path, int]] = {}
        """Of the run -> the engine's own log, and where in it the run begins."""

    @classmethod
    def given(cls) -> "Keeper | None":
        """The one that this process is to use; None where it has Ray and engines of its own."""
        directory, process = os.environ.get(KEEPER_VARIABLE), os.environ.get(KEEPER_PROCESS_VARIABLE)
        return cls(Path(directory), ProcessMark.parse(process) if process else None) if directory else None

    @property
    def logs(self) -> Path:
        """Where its engines log to, for as long as they live."""
        return self.directory / "logs"

    @property
    def marks(self) -> dict[str, str]:
        """Of processes that end with the keeper and not with the run, as environment variables."""
        return {DRIVER_VARIABLE: str(self._facts().process), RUN_VARIABLE: str(self.directory)}

    async def find_ray(self) -> RayAddress:
        """Of its Ray, once that has started.

        Raises:
            ConfigError: Ray refused what the run asks for.
            KeeperLost: the keeper has ended, or was not ready in time.
        """
        until = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < until:
            facts = KeeperFacts.read(self.directory)
            if facts is not None:
                if facts.status == "failed":
                    raise (ConfigError if facts.refused else KeeperLost)(facts.problem)
                if facts.status == "ending" or facts.process.standing() == "dead":
                    raise KeeperLost(f"the process that keeps engines in {self.directory} has ended")
                if facts.status == "ready":
                    await self._connect(facts.address)
                    return RayAddress(facts.address, "the engines' keeper", is_guarded=True)
            elif self._process is not None and self._process.standing() == "dead":
                raise KeeperLost(f"the process that keeps engines has ended at once; see {self.logs / 'keeper.log'}")
            await asyncio.sleep(_POLL_S)
        raise KeeperLost(f"no Ray within {_START_LIMIT_S:g} s; see {self.logs / 'keeper.log'}")

    async def _connect(self, address: str) -> None:
        """Ray itself would try for minutes, through which no signal is heard."""
        host, _, port = address.rpartition(":")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), _CONNECT_LIMIT_S)
        except OSError as error:  # a TimeoutError is one
            raise KeeperLost(f"the Ray that is kept in {self.directory} does not answer: {error}") from error
        writer.close()

    def check_shape(self, config: RunConfig, stop_token_ids: tuple[int, ...]) -> None:
        """KeeperLost where the engines are there, and a run alone would have others."""
        if not self.has_engines:
            return
        found = json.loads((self.directory / _ENGINES).read_text(encoding="utf-8"))
        wanted = _describe(config, stop_token_ids)
        if differing := [name for name, value in wanted.items() if found.get(name) != value]:
            raise KeeperLost(f"the engines in {self.directory} were started with another {', '.join(differing)}")

    def find_engine(self, index: int) -> Any:
        """Ray's handle of an engine of the run before. KeeperLost where it is gone."""
        try:
            return find_kept(index)
        except ValueError as error:
            raise KeeperLost(f"engine {index} in {self.directory} is gone: {error}") from error

    def options(self, index: int) -> dict[str, Any]:
        """Ray's, of an engine that stays when the run has ended."""
        return {"name": _name(index), "namespace": NAMESPACE, "lifetime": "detached"}

    def begin_log(self, path: Path) -> Path:
        """Where the engine logs whose log a reader looks for in `path`, in the run: what it says from now on is copied
        there when the run ends, and until then it is said there where it is."""
        own = self.logs / path.name
        if path in self._logs:
            return own
        start = own.stat().st_size if own.is_file() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- this engine outlives the run; until that ends see {own}, from byte {start} on\n")
        self._logs[path] = own, start
        return own

    def end_logs(self) -> None:
        """The run lets go of the engines."""
        for path, (own, start) in self._logs.items():
            with suppress(OSError), own.open("rb") as source, path.open("ab") as target:
                source.seek(start)
                while block := source.read(1 << 20):
                    target.write(block)
        self._logs.clear()

    def doubt(self, reason: str) -> None:
        """Nobody else may use the engines, however the run goes on."""
        self._doubts.append(reason)

    def trust(self, config: RunConfig, stop_token_ids: tuple[int, ...]) -> bool:
        """The run has ended well. Whether its engines may be used by the next."""
        if self._doubts:
            return False
        shape = json.dumps(_describe(config, stop_token_ids), indent=2)
        try:
            write_text_atomically(self.directory / _ENGINES, shape + "\n")
        except OSError as error:  # a full disk: the run itself has all that it needed
            self.doubt(f"their shape was not written: {error}")
            return False
        self._ended_well = True
        return True

    async def close(self) -> None:
        """After the run has let go of Ray: end the keeper, unless another run is to follow. Never raises."""
        facts = KeeperFacts.read(self.directory)
        if facts is None:  # it is only starting, which its owner sees to
            return
        if facts.owner.standing() == "dead":
            self.doubt("nobody is left to start another run")
        if self._ended_well and not self._doubts:
            return
        _log.info("the engines end: %s", "; ".join(self._doubts) or "the run has not ended well")
        for number, limit_s in ((signal.SIGTERM, _END_LIMIT_S), (signal.SIGKILL, _POLL_S)):
            with suppress(ProcessLookupError):
                if facts.process.standing() == "alive":
                    os.kill(facts.process.pid, number)
            until = time.monotonic() + limit_s
            while facts.process.standing() == "alive" and time.monotonic() < until:
                await asyncio.sleep(_POLL_S)

    def _facts(self) -> KeeperFacts:
        facts = KeeperFacts.read(self.directory)
        assert facts is not None, "it was ready before"
        return facts


def find_kept(index: int) -> Any:
    """Ray's handle of an engine that is kept. ValueError where there is none."""
    return ray.get_actor(_name(index), namespace=NAMESPACE)


def _name(index: int) -> str:
    return f"rollout-{index}"


def _describe(config: RunConfig, stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    return {**describe_engines(config), "stop_token_ids": list(stop_token_ids)}
