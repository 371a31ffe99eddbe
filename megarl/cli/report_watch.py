"""`megarl report --watch`: the page of runs that go on, served on this machine and built again as they do."""

import signal
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, is_ablation
from megarl.ablation.stored import is_stored
from megarl.cli.report import choose_runs, open_run
from megarl.cli.report_memory import memory_planner
from megarl.config.base import ConfigError
from megarl.report.figures import write_run_figures
from megarl.report.many import read_comparison, write_comparison
from megarl.report.rebuilding import Builder, Rebuilding
from megarl.report.serving import ADDRESS, LivePage, PortTakenError, serving
from megarl.telemetry.run_directory import RunDirectory

DEFAULT_PORT = 8642
"""Where no other is asked for; any free one where it is taken."""


def run_watch(paths: Sequence[Path], *, port: int | None) -> int:
    """Serve the page of these runs until Ctrl-C or SIGTERM. Returns the exit code, 0. ConfigError where a path is no
    run, or the port is taken."""
    runs = tuple(path.expanduser().absolute() for path in paths)
    try:
        find_watched(runs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"megarl report: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="megarl-report-") as folder, suppress(KeyboardInterrupt):
        _serve(runs, Path(folder) / "report.html", port)
    print("\nreport   ended", flush=True)
    return 0


def _serve(runs: tuple[Path, ...], page: Path, port: int | None) -> None:
    live = LivePage()
    with _listening(live, port) as found, Builder(build_page, runs, page) as builder:
        print(f"report   http://{ADDRESS}:{found}/   (Ctrl-C ends it)", flush=True)
        rebuilding = Rebuilding(live=live, builder=builder, page=page, look=lambda: look_at(runs), tell=_tell)
        rebuilding.run(threading.Event())


@contextmanager
def _listening(live: LivePage, port: int | None) -> Iterator[int]:
    try:
        server = serving(live, port=DEFAULT_PORT if port is None else port)
        found = server.__enter__()
    except PortTakenError as error:
        if port is not None:
            raise ConfigError(f"megarl report: {error}; expected a free one, or none: then any is taken") from error
        server = serving(live, port=0)
        found = server.__enter__()
    try:
        yield found
    finally:
        server.__exit__(None, None, None)


def build_page(runs: tuple[Path, ...], page: Path) -> None:
    """What `megarl report` writes, without pictures in files; in the process that builds."""
    chosen = choose_runs(runs)
    if isinstance(chosen, RunDirectory):
        write_run_figures(chosen.path, page=page, pictures=False, planner=memory_planner(chosen))
    else:
        write_comparison(read_comparison(chosen), page)


def find_watched(paths: Sequence[Path]) -> list[RunDirectory]:
    """The runs that have begun. ConfigError where a path is none."""
    found: list[RunDirectory] = []
    for path in paths:
        if is_stored(path):
            raise ConfigError(
                f"megarl report: {path} is a stored table, which does not go on; expected runs to --watch"
            )
        if is_ablation(path):
            ablation = AblationDirectory.open(path)
            found += [RunDirectory(run) for cell in ablation.plan().cells if (run := ablation.run_of(cell)) is not None]
        else:
            found.append(open_run(path))
    return found


def look_at(paths: Sequence[Path]) -> Hashable:
    """What a page of these runs depends on: how each stands, and the sizes and times of its files.

    Not state.json's time, which a run that lives renews, nor what a report writes itself."""
    try:
        return tuple(_look_at_run(run) for run in find_watched(paths))
    except (ConfigError, OSError, ValueError) as error:
        return str(error)


def _look_at_run(run: RunDirectory) -> Hashable:
    read = (run.metrics_path, run.updates_path, run.restarts_path, run.config_path, run.versions_path)
    folders = (run.rollouts, run.evaluations, *sorted(run.evaluations.glob("step-*")))
    try:
        standing: Hashable = run.standing()
    except (OSError, ValueError, TypeError) as error:
        standing = str(error)
    return run.path, standing, tuple(_stamp(path) for path in (*read, *folders))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
