"""`python -m tests.ablation.stand_in LINK JOURNAL BEHAVIOUR`: a run's directory as a run writes it, without the run.

Behaviour, as JSON: steps, step_s, fails (attempts of this run that fail in step 2), code (with which they do), killed
(they are killed instead), stop_s (how long they take to stop), silent (they leave no run directory). Goes on where LINK
leads to a run. JOURNAL gets a line when it begins, with which keeper, and when it ends.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Alone: RunDirectory would bring the whole configuration, which takes longer to import than a stand-in lives.
from megarl.telemetry.process_mark import ProcessMark


def write_state(run: Path, status: str, step: int, message: str | None = None) -> None:
    facts = {"status": status, "step": step, "message": message}
    if status == "running":
        facts["driver"] = ProcessMark.of(os.getpid()).as_json()
    partial = run / "state.partial"
    partial.write_text(json.dumps(facts))
    os.replace(partial, run / "state.json")


CONFIG = """
name = "stand-in"
model.path = "models/tiny"
data.train = { source = "reasoning_gym", task = "chain_sum" }
reward.verifier.kind = "reasoning_gym"
"""


def main(link: Path, journal: Path, behaviour: dict[str, Any]) -> int:
    def note(what: str) -> None:
        with journal.open("a") as file:
            file.write(f"{what} {link.name} {time.monotonic()}\n")

    def stop(number: int, _: object) -> None:
        time.sleep(behaviour.get("stop_s", 0.0))
        write_state(run, "interrupted", step, f"stopped by {signal.Signals(number).name}")
        note(f"stop-{signal.Signals(number).name}")
        os._exit(130)

    earlier = sum(line.split()[:2] == ["begin", link.name] for line in read(journal))
    note("begin")
    if "MEGARL_KEEPER" in os.environ:
        assert ProcessMark.parse(os.environ["MEGARL_KEEPER_PROCESS"]).standing() == "alive"
        note(f"with-{await_keeper(Path(os.environ['MEGARL_KEEPER']))}")
    print("a line of its own", flush=True)
    if behaviour.get("silent") and earlier < behaviour["fails"]:
        print("ImportError: no module", flush=True)
        return 1
    run, step = begin(link)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    first = step + 1
    for step in range(first, behaviour["steps"] + 1):
        if step == 2 and earlier < behaviour.get("fails", 0):
            if behaviour.get("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            write_state(run, "failed", 1, "it broke\nin step 2")
            note("fail")
            return int(behaviour.get("code", 1))
        time.sleep(behaviour.get("step_s", 0.01))
        row = {"step": step, "timestamp": time.time(), "reward/mean": 0.1 * step, "actor/entropy": 1 / step}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        write_state(run, "running", step)
    write_state(run, "finished", step)
    note("end")
    return 0


def await_keeper(directory: Path) -> str:
    """As a run waits for its Ray."""
    while not (directory / "pid").exists():
        time.sleep(0.02)
    return directory.name


def begin(link: Path) -> tuple[Path, int]:
    """(the run, the steps that it has made before)."""
    if link.exists():
        run = link.resolve()
        step = json.loads((run / "state.json").read_text())["step"]
    else:
        run, step = link.parent / "runs" / f"{link.name}-train", 0
        run.mkdir(parents=True)
        link.symlink_to(os.path.relpath(run, link.parent))
        (run / "config.toml").write_text(CONFIG)
    write_state(run, "running", step)
    return run, step


def read(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
