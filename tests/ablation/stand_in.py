"""`python -m tests.ablation.stand_in LINK JOURNAL BEHAVIOUR`: a run's directory as a run writes it, without the run.

Behaviour, as JSON: steps, step_s, fails (attempts of this run that fail in step 2), code (with which they do), killed
(they are killed instead), silent (they leave no run directory). Goes on where LINK leads to a run. JOURNAL gets a line
when it begins and when it ends.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from megarl.telemetry.run_directory import RunDirectory, RunState


def main(link: Path, journal: Path, behaviour: dict[str, Any]) -> int:
    def note(what: str) -> None:
        with journal.open("a") as file:
            file.write(f"{what} {link.name} {time.monotonic()}\n")

    def stop(number: int, _: object) -> None:
        if behaviour.get("deaf"):
            return
        run.write_state(RunState(status="interrupted", step=step, message=f"stopped by {signal.Signals(number).name}"))
        note(f"stop-{signal.Signals(number).name}")
        os._exit(130)

    earlier = sum(line.split()[:2] == ["begin", link.name] for line in read(journal))
    note("begin")
    print("a line of its own", flush=True)
    if behaviour.get("silent") and earlier < behaviour["fails"]:
        print("ImportError: no module", flush=True)
        return 1
    run, step = begin(link)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    for step in range(step + 1, behaviour["steps"] + 1):
        if step == 2 and earlier < behaviour.get("fails", 0):
            if behaviour.get("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            run.write_state(RunState(status="failed", step=1, message="it broke\nin step 2"))
            note("fail")
            return int(behaviour.get("code", 1))
        time.sleep(behaviour.get("step_s", 0.01))
        row = {"step": step, "timestamp": time.time(), "reward/mean": 0.1 * step, "actor/entropy": 1 / step}
        with run.metrics_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        run.write_state(RunState(status="running", step=step))
    run.write_state(RunState(status="finished", step=step))
    note("end")
    return 0


def begin(link: Path) -> tuple[RunDirectory, int]:
    """(the run, the steps that it has made before)."""
    if link.exists():
        run = RunDirectory.open(link)
        step = run.read_state().step
    else:
        run, step = RunDirectory(link.parent / "runs" / f"{link.name}-train"), 0
        run.path.mkdir(parents=True)
        link.symlink_to(run.path)
    run.write_state(RunState(status="running", step=step))
    return run, step


def read(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
