"""What `train` and `sft` share: the run directory, the display, signals, and an orderly end."""

import asyncio
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from megarl.cli.interrupts import Interrupts, say_at_once, signals_as_interrupt
from megarl.cli.machine_paths import WRITE_ERRORS, describe_write_error
from megarl.cli.paths import shown_path
from megarl.cli.report import draw_figures
from megarl.cli.restart import call_off, go_on, has_gone_on, note_failure
from megarl.cli.resume import Resumed
from megarl.cli.stack import deciding_versions, find_costs
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.config.warnings import find_warnings
from megarl.controller.reporting import StepReporter
from megarl.controller.stopping import RunStoppedError, StopRequest
from megarl.planning.shortage import ShortageError
from megarl.runtime.failures import is_machine_fault
from megarl.runtime.heart import Heart
from megarl.runtime.leftovers import clean_killed_runs, end_run_processes, marked_process
from megarl.slurm.job_directory import link_run
from megarl.telemetry.columns import Column
from megarl.telemetry.console import Console
from megarl.telemetry.logs import setup_logging
from megarl.telemetry.restarts import Restart
from megarl.telemetry.run_directory import RunDirectory, RunStatus
from megarl.telemetry.run_lock import hold_run
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130
_END_GRACE_S = 10.0
_STOPPED = "stopped by a signal"


@dataclass(frozen=True)
class Session:
    """An open run: where it writes and how it speaks."""

    config: RunConfig
    directory: RunDirectory
    console: Console
    reporter: StepReporter
    stop: StopRequest
    """Asked by a signal to end the run after the step under way."""
    heart: Heart
    """Knows what every process is doing."""

    def say(self, *lines: str) -> None:
        """Lines on what the run works with, on the display and in the log."""
        for line in lines:
            self.console.note(line)
            logger.debug("%s", line)


@dataclass(frozen=True)
class _Outcome:
    """How the work ended."""

    status: RunStatus
    message: str | None
    code: int
    of_machine: bool = False
    """A start of the same run may get further."""


Work = Callable[[Session], Awaitable[None]]


def run_session(
    config: RunConfig,
    work: Work,
    *,
    sources: Sequence[Path],
    verb: str,
    steps: int,
    columns: Sequence[Column],
    resumed: Resumed | None = None,
    link: Path | None = None,
) -> int:
    """Run `work` in a new run directory to its end, a failure or Ctrl-C; returns the exit code.

    sources: the configuration file and the fragments after it, which the directory keeps word for word.
    resumed: a run that goes on, in its own directory and by the rules of a new one.
    link: made to lead to the directory, as soon as there is one.
    The directory is readable in every case: state.json says finished, interrupted or failed, and why; a run that was
    killed is recognised by its process (`RunDirectory.standing`). Afterwards no process of the run is left here.

    Raises RunAgain, when all that is done and a pause is over, where the run goes on by itself (`cli.restart`).
    """
    if resumed:
        directory = resumed.open(config, sources=sources)
    else:
        directory = RunDirectory.create(config, source=sources[0], fragments=sources[1:], verb=verb)
        hold_run(directory.path)
    if link is not None:
        link_run(directory.path, link)
    setup_logging("controller", 0, directory.logs)
    clean_killed_runs()
    stop = StopRequest()
    interrupts = Interrupts(
        kill=functools.partial(_kill, directory), stop=stop, stop_within_s=config.checkpoint.stop_within_s
    )
    restart: Restart | None = None
    with marked_process(directory.path), interrupts.heard(), directory.pulse():
        opened = _open_session(config, directory, stop, steps=steps, columns=columns, resumed=resumed)
        outcome = _work_to_the_end(config, directory, interrupts, work, opened, verb=verb)
        try:
            end_run_processes(grace_s=_END_GRACE_S)
            if outcome.of_machine and verb == "train" and not interrupts.any_heard:
                restart = note_failure(config, directory, outcome.message or "", began=stop.has_steps)
        except KeyboardInterrupt:
            end_run_processes(grace_s=0.0)
    return _end(config, directory, outcome, restart, verb=verb, stopped=interrupts.any_heard)


def _end(
    config: RunConfig, directory: RunDirectory, outcome: _Outcome, restart: Restart | None, *, verb: str, stopped: bool
) -> int:
    """Write and say how it ended, and what follows; the exit code where nothing does. stopped: a signal came."""
    pause_s = restart.pause_s if restart else None
    goes_on_s = None if pause_s is None else time.time() + pause_s
    try:
        state = directory.read_state()
        directory.write_state(replace(state, status=outcome.status, message=outcome.message, goes_on_s=goes_on_s))
    except OSError as error:
        restart = pause_s = None
        print(f"state.json keeps its last state: {describe_write_error(error, directory.path)}", flush=True)
    with signals_as_interrupt():
        undisturbed = _finish(config, directory, outcome, verb=verb) and not stopped
        if restart is not None:
            print(f"restart  {restart.text}", flush=True)
        return outcome.code if pause_s is None else _go_on_unless_stopped(directory, pause_s, undisturbed=undisturbed)


def _go_on_unless_stopped(directory: RunDirectory, pause_s: float, *, undisturbed: bool) -> int:
    """RunAgain after the pause; the exit code where a signal comes before, or has come."""
    try:
        if undisturbed:
            go_on(directory, pause_s)
    except KeyboardInterrupt:
        pass
    call_off(directory, _STOPPED)
    print(f"\ninterrupted: {_STOPPED}; megarl train --resume {shown_path(directory.path)} goes on", flush=True)
    return EXIT_INTERRUPTED


def _work_to_the_end(
    config: RunConfig,
    directory: RunDirectory,
    interrupts: Interrupts,
    work: Work,
    opened: AbstractContextManager[Session],
    *,
    verb: str,
) -> _Outcome:
    try:
        with opened as session:
            warnings = (*find_warnings(config), *find_costs(config, deciding_versions()))
            session.say(*(f"warning: {warning}" for warning in warnings))
            for note in filter(None, (describe_kept_weights(config, verb), describe_saves(config, verb))):
                session.console.note(note)
            asyncio.run(interrupts.cancellable(_work_with_heart(session, work)))
        return _Outcome("finished", None, 0)
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        return _Outcome("interrupted", _with_notes(_STOPPED, error), EXIT_INTERRUPTED)
    except RunStoppedError as error:
        return _Outcome("interrupted", str(error), EXIT_INTERRUPTED)
    except ConfigError as error:
        # The nodes were enough before: one of them is lost, and may come back.
        lost = isinstance(error, ShortageError) and has_gone_on(directory)
        return _Outcome("failed", str(error), EXIT_CONFIG, of_machine=lost)
    except Exception as error:
        with suppress(OSError):  # of a full disk, which may be the error itself
            (directory.logs / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
        text = str(error)
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            text = describe_write_error(error, directory.path)
        text = _with_notes(text or type(error).__name__, error)
        return _Outcome("failed", text, EXIT_FAILED, of_machine=is_machine_fault(error))


async def _work_with_heart(session: Session, work: Work) -> None:
    async with session.heart.beating():
        await work(session)


def _with_notes(text: str, error: BaseException) -> str:
    return "\n".join([text, *getattr(error, "__notes__", ())])


def describe_kept_weights(config: RunConfig, verb: str) -> str | None:
    """What a run of RL steps keeps, where that is only its last weights."""
    if verb != "train" or config.train.export_every:
        return None
    return (
        "train.export_every is 0: no weights are kept but the last ones, written after step "
        f"{config.train.steps}; train.export_every=10 keeps those of every tenth step"
    )


def describe_saves(config: RunConfig, verb: str) -> str | None:
    """That a run of RL steps does not save itself, where it does not."""
    if verb != "train" or config.checkpoint.on:
        return None
    return (
        "checkpoint.every_steps and every_minutes are 0: a run that is killed starts over; checkpoint.every_minutes=30 "
        "saves it every half hour"
    )


@contextmanager
def _open_session(
    config: RunConfig,
    directory: RunDirectory,
    stop: StopRequest,
    *,
    steps: int,
    columns: Sequence[Column],
    resumed: Resumed | None,
) -> Iterator[Session]:
    # Before a file is opened to be written on; after what the killed process left can write no more.
    cut = resumed.cut_back() if resumed else []
    sinks = build_sinks(config, run=directory, after_step=resumed.step if resumed else 0)
    update_sinks = build_update_sinks(run=directory)
    try:
        with Console(steps=steps, columns=columns) as console, Spans(directory.timeline_path) as spans:
            reporter = StepReporter(
                config=config,
                directory=directory,
                console=console,
                sinks=sinks,
                update_sinks=update_sinks,
                spans=spans,
            )
            heart = Heart(directory, spans, steps=steps, overdue=stop.is_overdue)
            session = Session(config, directory, console, reporter, stop, heart)
            console.note(f"run  {shown_path(directory.path)}")
            session.say(*(resumed.about if resumed else ()), *cut)
            yield session
    finally:
        sinks.close()
        update_sinks.close()


def _kill(directory: RunDirectory, why: str) -> None:
    """End every process of the run, and this one, at once; from a signal handler or a thread."""
    try:
        end_run_processes(grace_s=0.0)
        directory.write_state(replace(directory.read_state(), status="interrupted", message=why))
    except Exception as error:  # a full disk, say: nothing may keep this process
        why = f"{why}; state.json keeps its last state: {error}"
    finally:
        shown_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        say_at_once(f"{shown_cursor}\ninterrupted: {why}\nrun      {directory.path}\n")
        os._exit(EXIT_INTERRUPTED)


def _finish(config: RunConfig, directory: RunDirectory, outcome: _Outcome, *, verb: str) -> bool:
    """Say how it ended and draw what there is; nothing here changes the outcome. False where a signal came."""
    if outcome.message is not None:
        print(f"\n{outcome.status}: {outcome.message}", flush=True)
    if verb == "eval":
        print(f"answers  {shown_path(directory.evaluations)}", flush=True)
        return True
    undisturbed = True
    try:
        if directory.metrics_path.is_file() and directory.metrics_path.stat().st_size:
            print()
            draw_figures(directory)
    except KeyboardInterrupt:
        undisturbed = False
        print(f"figures  not drawn: {_STOPPED}; megarl report {shown_path(directory.path)} draws them")
    print(_describe_exports(config, directory, verb))
    print(f"run      {shown_path(directory.path)}", flush=True)
    return undisturbed


def _describe_exports(config: RunConfig, directory: RunDirectory, verb: str) -> str:
    kept = sorted(path for path in directory.exports.iterdir() if not path.name.startswith("."))
    if not kept:
        only = " (train.export_every is 0: they are written after the last step only)"
        return f"weights  none were kept{only if describe_kept_weights(config, verb) else ''}"
    only = "; only the last ones are kept: train.export_every is 0" if describe_kept_weights(config, verb) else ""
    more = f" and {len(kept) - 1} earlier" if len(kept) > 1 else ""
    return f"weights  {shown_path(kept[-1])}{more}{only}"
