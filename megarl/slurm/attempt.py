"""`python -m megarl.slurm.attempt begin|end`: what a job's script has remembered of its attempt, and what follows.

begin exits with 0 where the attempt shall run, with 3 where the run is finished, with 1 where it was lost too often.
end prints one line for the script on standard output: "requeue SECONDS [NODE,...]", "done" or "stop". Why is said on
standard error.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megarl.checkpoint.run_checkpoint import newest_checkpoint
from megarl.config.checkpoint import BATCH_JOB
from megarl.config.loader import load_config
from megarl.slurm.attempts import Attempt, Ending, decide, find_lost
from megarl.slurm.job_directory import RunOfJob
from megarl.telemetry.run_directory import RunState

NOTHING_TO_DO = 3
_EXIT_CONFIG = 2
_EXIT_INTERRUPTED = 130
_TAIL_LINES = 20
_SHOWN_LINES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """What the job's script calls. `begin` is 0 where the attempt may begin, else NOTHING_TO_DO or a failure; `end`
    prints what follows, and is 0."""
    options = _parse(arguments)
    place = RunOfJob(options.directory)
    if options.what == "begin":
        return begin(place, options.attempt, nodes=options.nodes, job=options.job)
    print(end(place, asked=bool(options.asked), restarts=options.restarts), flush=True)
    return 0


def begin(place: RunOfJob, number: int, *, nodes: str, job: str) -> int:
    """Note that an attempt begins, or why none does; the exit code."""
    attempts, run = place.read_attempts(), place.run()
    if run is not None and run.standing()[0] == "finished":
        _say(f"nothing to do: {run.path} is finished")
        return NOTHING_TO_DO
    if (why := find_lost(attempts)) is not None:
        _say(f"no attempt {number}: {why}")
        return 1
    saved = newest_checkpoint(run.checkpoints) if run is not None else None
    step = saved.step if saved else 0
    where = f"after step {step}" if step else "from the beginning"
    _say(f"attempt {number} of job {job} on {nodes}: {where}")
    began = Attempt(number=number, job=job, nodes=nodes, began_s=time.time(), from_step=step)
    place.write_attempts([*attempts, began])
    return 0


def end(place: RunOfJob, *, asked: bool, restarts: int) -> str:
    """Note how the attempt that began last has ended; the line for the script."""
    *before, attempt = place.read_attempts()
    ended = describe_ending(place, attempt, asked=asked)
    verdict = decide([*before, ended], restarts=restarts)
    place.write_attempts([*before, replace(ended, verdict=verdict.text)])
    _say(f"{ended.ending} after step {ended.step}: {ended.text}\n{verdict.text}")
    if verdict.action == "requeue":
        return " ".join(["requeue", str(verdict.pause_s), ",".join(verdict.avoid)]).strip()
    return verdict.action


def describe_ending(place: RunOfJob, attempt: Attempt, *, asked: bool) -> Attempt:
    """The attempt as it has ended, by its logs and the run's state. asked: the time limit was near."""
    logs = place.logs(attempt.number)
    unfit = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(logs.glob("*.unfit"))}
    state = _state_of(place, attempt)
    step = state.step if state is not None else attempt.from_step
    code = _read_code(logs / "trainer.exit")
    text = (state.message if state is not None else None) or ""
    ending = _find_ending(
        code,
        unfit=bool(unfit),
        began=(logs / "trainer.pid").exists(),
        asked=asked or _saved_by_clock(place, text),
    )
    if unfit:
        text = "; ".join(f"{node}: {reason}" for node, reason in unfit.items())
    elif ending in ("crashed", "refused", "unfit") and not text:
        text = _describe_silence(logs, code)
    return replace(attempt, ending=ending, ended_s=time.time(), step=step, text=text or ending, unfit=tuple(unfit))


def _state_of(place: RunOfJob, attempt: Attempt) -> RunState | None:
    """The run's state; None where the attempt did not get so far as to write one, and it is that of an earlier one."""
    run = place.run()
    if run is None or run.state_path.stat().st_mtime < attempt.began_s:
        return None
    return run.read_state()


def _find_ending(code: int | None, *, unfit: bool, began: bool, asked: bool) -> Ending:
    if unfit:
        return "unfit"
    if code == 0:
        return "finished"
    if code == _EXIT_CONFIG:
        return "refused"
    if asked and code in (None, _EXIT_INTERRUPTED):
        return "time limit"
    if code is None and not began:
        return "unfit"
    return "stopped" if code == _EXIT_INTERRUPTED else "crashed"


def _saved_by_clock(place: RunOfJob, text: str) -> bool:
    """Whether the run ended because `checkpoint.end_time` is the job's."""
    run = place.run()
    if run is None or not text.startswith("checkpoint.end_time"):
        return False
    return load_config(run.config_path).checkpoint.end_time == BATCH_JOB


def _describe_silence(logs: Path, code: int | None) -> str:
    """Of a trainer that left no message: its exit code where there is one, and the last words of every node."""
    if code is not None:
        what = f"the trainer ended with exit code {code}"
    elif (logs / "trainer.pid").exists():
        what = "the trainer's end was not told"
    else:
        what = "the trainer did not begin: the check of a node, or the start of Ray, did not end well"
    lines = []
    for path in sorted(logs.glob("*.log")):
        words = path.read_text(encoding="utf-8", errors="replace").split("\n")[-_TAIL_LINES:]
        lines += [f"{path.stem}: {line.strip()}" for line in words if line.strip()][-_SHOWN_LINES:]
    return "\n".join([what, *lines])


def _read_code(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m megarl.slurm.attempt")
    parser.add_argument("what", choices=["begin", "end"])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--nodes", default="")
    parser.add_argument("--job", default="")
    parser.add_argument("--asked", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
