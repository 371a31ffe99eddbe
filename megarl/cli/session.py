"""What `train` and `sft` share: the run directory, the display, signals, and an orderly end."""

import asyncio
import signal
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from megarl.cli.paths import shown_path
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.config.warnings import find_warnings
from megarl.controller.reporting import StepReporter
from megarl.telemetry.columns import Column
from megarl.telemetry.console import Console
from megarl.telemetry.figures import write_run_figures
from megarl.telemetry.logs import setup_logging
from megarl.telemetry.run_directory import RunDirectory, RunStatus
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Session:
    """An open run: where it writes and how it speaks."""

    config: RunConfig
    directory: RunDirectory
    console: Console
    reporter: StepReporter


Work = Callable[[Session], Awaitable[None]]


def resolve_model_path(config: RunConfig) -> RunConfig:
    """The config with an absolute model.path: workers do not share this process's working directory."""
    path = str(Path(config.model.path).expanduser().resolve())
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})


def run_session(
    config: RunConfig, work: Work, *, sources: Sequence[Path], verb: str, steps: int, columns: Sequence[Column]
) -> int:
    """Run `work` in a new run directory to its end, a failure or Ctrl-C; returns the exit code.

    sources: the configuration file and the fragments after it, which the directory keeps word for word.
    The directory is readable in every case: state.json says finished, interrupted or failed, and why.
    """
    directory = RunDirectory.create(config, source=sources[0], fragments=sources[1:], verb=verb)
    setup_logging("controller", 0, directory.logs)
    with _open_session(config, directory, steps=steps, columns=columns) as session:
        session.console.note(f"run  {shown_path(directory.path)}")
        for warning in find_warnings(config):
            session.console.note(f"warning: {warning}")
        status: RunStatus
        message: str | None
        try:
            asyncio.run(_cancellable(work(session)))
            status, message, code = "finished", None, 0
        except (asyncio.CancelledError, KeyboardInterrupt):
            status, message, code = "interrupted", "stopped by a signal", EXIT_INTERRUPTED
        except ConfigError as error:
            status, message, code = "failed", str(error), EXIT_CONFIG
        except Exception as error:
            (directory.logs / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
            status, message, code = "failed", f"{error}", EXIT_FAILED
    _finish(session, status, message)
    return code


@contextmanager
def _open_session(
    config: RunConfig, directory: RunDirectory, *, steps: int, columns: Sequence[Column]
) -> Iterator[Session]:
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
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
            yield Session(config, directory, console, reporter)
    finally:
        sinks.close()
        update_sinks.close()


async def _cancellable(work: Awaitable[None]) -> None:
    """Ctrl-C and SIGTERM cancel the work, so that its `finally` blocks end every worker; a second Ctrl-C is ignored
    while they do."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await task


def _finish(session: Session, status: RunStatus, message: str | None) -> None:
    directory = session.directory
    directory.write_state(replace(directory.read_state(), status=status, message=message))
    if message is not None:
        print(f"\n{status}: {message}", flush=True)
    if directory.metrics_path.stat().st_size:
        figures = write_run_figures(directory.path)
        print(f"\nfigures  {shown_path(directory.figures)} ({len(figures)} files)")
        print(f"report   {shown_path(directory.report_path)}")
    print(f"run      {shown_path(directory.path)}")
