"""A run that a fault of a machine has ended goes on by itself: whether, when, and what its directory says meanwhile.

When everything of the run is closed and its directory can be read, the process waits and then begins itself anew
(`run_again`), so that no process watches over another one. restarts.json has the failures, by which the next one is
judged (`telemetry.restarts`).
"""

import os
import time
from dataclasses import replace

from megarl.checkpoint.run_checkpoint import newest_checkpoint
from megarl.cli.run_again import RunAgain
from megarl.config.run import RunConfig
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.restarts import Failure, Restart, decide_restart, read_failures, write_failures
from megarl.telemetry.run_directory import RunDirectory

_LOOK_EVERY_S = 0.5


def note_failure(config: RunConfig, directory: RunDirectory, text: str, *, began: bool) -> Restart | None:
    """What follows a failure that a machine may be to blame for, written down; None where the run was not to go on by
    itself in any case.

    text: what failed. began: whether a first step had begun.
    """
    try:
        saved = newest_checkpoint(directory.checkpoints)
        if not config.cluster.restarts or (saved is None and not config.checkpoint.on):
            return None
        driver, now = str(ProcessMark.of(os.getpid())), time.time()
        failure = Failure(at_s=now, step=directory.read_state().step, text=text, driver=driver)
        before = read_failures(directory.restarts_path)
        restart = decide_restart(
            [*(each for each in before if each.driver == driver), failure],
            restarts=config.cluster.restarts,
            first_pause_s=config.cluster.restart_pause_s,
            began=began,
            from_step=None if saved is None else saved.step,
            exported=any(directory.exports.glob("step-*")),
        )
        goes_on_s = None if restart.pause_s is None else now + restart.pause_s
        failure = replace(failure, goes_on_s=goes_on_s, verdict=restart.text)
        write_failures(directory.restarts_path, [*before, failure])
    except (OSError, ValueError) as error:
        return Restart(pause_s=None, text=f"the run does not go on by itself: {error}")
    return restart


def has_gone_on(directory: RunDirectory) -> bool:
    """Whether this process goes on with the run by itself, after a failure: it has found room for it before."""
    driver = str(ProcessMark.of(os.getpid()))
    try:
        return any(failure.driver == driver for failure in read_failures(directory.restarts_path))
    except (OSError, ValueError):
        return False  # which the next failure tells


def call_off(directory: RunDirectory, why: str) -> None:
    """The run does not go on by itself after all."""
    *before, last = read_failures(directory.restarts_path)
    write_failures(directory.restarts_path, [*before, replace(last, goes_on_s=None, verdict=why)])
    state = directory.read_state()
    message = f"{why}; before that it had failed: {state.message}"
    directory.write_state(replace(state, status="interrupted", message=message, goes_on_s=None))


def go_on(directory: RunDirectory, pause_s: float) -> None:
    """RunAgain when the pause is over; whoever cannot see this process sees meanwhile that it lives."""
    until = time.monotonic() + pause_s
    with directory.pulse():
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_EVERY_S))
    raise RunAgain(directory.path)
