"""`megarl train` with a stand-in for its work: everything around it is the real program, which becomes itself again.

    python tests/cli/restarting.py dies,dies,works train run.toml ...

One word for each start. What a start finds is a line of starts.jsonl in the current directory.
"""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))
STARTS = Path("starts.jsonl")
GIVEN_FD, LEFT_OPEN = "GIVEN_FD", "left-open"


def begin(resumed: Any) -> int:
    """Which start this is; notes what it was given."""
    number = len(STARTS.read_text().splitlines()) if STARTS.exists() else 0
    open_files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    facts = {
        "pid": os.getpid(),
        "arguments": sys.argv[1:],
        "after": resumed.step if resumed else None,
        "token": os.environ.get("RAY_AUTH_TOKEN"),
        "keeper": os.environ.get("MEGARL_KEEPER"),
        "lock": sum(name.endswith("driver.lock") for name in open_files),
        "left": any(name.endswith(LEFT_OPEN) for name in open_files),
        "given": GIVEN_FD in os.environ and fcntl.fcntl(int(os.environ[GIVEN_FD]), fcntl.F_GETFD),
    }
    with STARTS.open("a") as file:
        file.write(json.dumps(facts) + "\n")
    os.environ["RAY_AUTH_TOKEN"] = "of this start"
    os.set_inheritable(os.open(LEFT_OPEN, os.O_CREAT | os.O_RDWR), True)
    return number


def make_step(session: Any, step: int, *, saved: bool) -> None:
    from megarl.telemetry.run_directory import RunState
    from tests.cli.resumable_runs import save

    session.reporter._log(step, {})
    if saved:
        save(session.directory, step, session.config)
    session.directory.write_state(RunState(status="running", step=step))


def fail(word: str, step: int) -> NoReturn:
    from megarl.config.base import ConfigError
    from megarl.planning.shortage import ShortageError
    from megarl.policy.reports import NonFiniteLossError
    from megarl.runtime.failures import WorkerDied, WorkerFailed

    match word:
        case "refused":
            raise ConfigError("the configuration cannot work")
        case "no-room":
            raise ShortageError(f"the Ray cluster cannot place 2 policy ranks: found {step} GPU free")
        case "breaks":
            raise RuntimeError("the driver broke")
        case "not-finite":
            error = WorkerFailed("policy rank 0 raised NonFiniteLossError: nan")
            cause = RuntimeError()  # as Ray brings it
            cause.cause = NonFiniteLossError("nan")  # type: ignore[attr-defined]
            raise error from cause
        case "stops-answering":
            raise WorkerFailed(f"rollout rank 0 did not sample within {step} s")
    raise WorkerDied(f"policy rank 1 died: process {os.getpid() + step} is gone\nEnd of its log")


def run_stand_in(config: Any, *, sources: Any, replaced: Any = (), resumed: Any = None, link: Any = None) -> int:
    from megarl.cli.session import run_session
    from megarl.telemetry.columns import SFT_COLUMNS

    word = plan[begin(resumed)]
    step = resumed.step if resumed else 0

    async def work(session: Any) -> None:
        if word in ("unstarted", "no-room"):
            fail(word, step)
        session.stop.listen(saves=True)
        if word == "exports":
            (session.directory.exports / "step-000001").mkdir()
        if word != "stuck":
            make_step(session, step + 1, saved=word not in ("unsaved", "exports"))
        if word == "asked":
            session.stop.ask("SIGTERM", to_save=True)
        if word != "works":
            fail(word, step)

    return run_session(
        config, work, sources=sources, verb="train", steps=9, columns=SFT_COLUMNS, resumed=resumed, link=link
    )


if __name__ == "__main__":
    plan = sys.argv[1].split(",")
    sys.argv = ["megarl", *sys.argv[2:]]
    import megarl.cli.train
    from megarl.cli.main import main

    megarl.cli.train.run_train = run_stand_in
    main()
