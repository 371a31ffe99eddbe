"""`python -m megarl.cli.keeper DIRECTORY CONFIG [FRAGMENT.toml|a.b=value ...]`: the process that keeps Ray and engines
between runs of one shape (`runtime.keeper`). `megarl ablate` starts it; nobody types it.

CONFIG and what follows: of one of the runs. It starts Ray and says so in keeper.json; the engines are started by the
first run. It ends, with its Ray and all engines, at SIGTERM, or when its standard input ends: whoever started it, and
every run, holds the other end of that, so that it outlives none of them however they go.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.runtime.closing import undisturbed
from megarl.runtime.cluster import kept_ray
from megarl.runtime.leftovers import end_run_processes, marked_process
from megarl.runtime.rollout_actors import end_kept_engines
from megarl.telemetry.keeper_file import KeeperFacts
from megarl.telemetry.logs import setup_logging
from megarl.telemetry.process_mark import ProcessMark

_END_GRACE_S = 10.0


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 where it was told to end, 1 where Ray did not start."""
    directory, config, *overrides = arguments
    return keep(load_config(Path(config), overrides), Path(directory))


def keep(config: RunConfig, directory: Path) -> int:
    """Until it is told to end. directory: its own, which is there."""
    facts = KeeperFacts(status="starting", process=ProcessMark.of(os.getpid()), owner=ProcessMark.of(os.getppid()))
    facts.write(directory)
    setup_logging("keeper", 0, directory / "logs")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with marked_process(directory):
        try:
            asyncio.run(_keep(config, directory, facts))
        except Exception as error:
            problem = str(error) or type(error).__name__
            replace(facts, status="failed", problem=problem, refused=isinstance(error, ConfigError)).write(directory)
            print(f"Ray did not start: {problem}", file=sys.stderr, flush=True)
            return 1
        finally:
            end_run_processes(grace_s=_END_GRACE_S)
    return 0


async def _keep(config: RunConfig, directory: Path, facts: KeeperFacts) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    # By Python's own means: Ray takes the signals of an event loop away.
    signal.signal(signal.SIGTERM, lambda *_: _tell(loop, told))
    threading.Thread(target=_read_to_end, args=(lambda: _tell(loop, told),), daemon=True).start()
    async with kept_ray(config) as address:
        if not told.is_set():
            replace(facts, status="ready", address=address).write(directory)
            await told.wait()
        with suppress(OSError):  # a full disk: the engines end in order all the same
            replace(facts, status="ending").write(directory)
        await undisturbed(end_kept_engines(config.rollout.engines))


def _tell(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
    """Also when it is ending already: its owner, a run and a scheduler may all tell it."""
    with suppress(RuntimeError):  # the loop is closed; what is left of the run's is being ended
        loop.call_soon_threadsafe(told.set)


def _read_to_end(ended: Callable[[], object]) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    ended()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
