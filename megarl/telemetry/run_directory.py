"""The directory of one run: where every file of it lies, and the few files it writes itself.

    config.toml     the resolved configuration; loading it gives the same RunConfig
    config.source   the configuration file as the user wrote it, comments included; the fragments after it, in order,
                    are config.source.1-<name>, config.source.2-<name>, ... (overrides: the command in versions.json)
                    a run that went on under another configuration keeps the one before as config.step-000012.toml: it
                    held up to that step
    versions.json   the run's id, python, packages, git revision, host, command line; the same of each time it went on
    state.json      status, last finished step, the driver's state after it, and which process drives the run; replaced
                    whole when everything of a step is written, touched every half minute while the run lives
    driver.lock     locked by the process that drives the run, as long as that lives (`run_lock`)
    restarts.json   failures after which it went on by itself, or did not any more (telemetry.restarts)
    heartbeat.json  what every process is doing; replaced whole every few seconds (telemetry.heartbeat)
    metrics.jsonl, updates.jsonl, timeline.json, report.html, rollouts/, logs/, figures/
    checkpoints/    what the run goes on from (checkpoint.run_checkpoint)
    hf/             exported weights, a Hugging Face checkpoint each
    eval/           answers to benchmarks (evaluation.answers): of a run in step-000012/, of `megarl eval` right here
    job             a link to the job that the run is of, where it was submitted (slurm.job_directory)

A run directory is made once and never reused for another run; a run that goes on opens its own again.
"""

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from megarl.config.dump import dump_config
from megarl.config.run import RunConfig
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.versions import collect_versions

RunStatus = Literal["running", "finished", "interrupted", "failed"]
Standing = Literal[RunStatus, "killed"]
"""What a reader may find: a run that was killed could not write so itself."""

PULSE_S = 30.0
_SILENT_S = 600.0
"""A run on another machine whose state.json is older than this, and says that it runs, does not."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands. `step` steps are finished and what they leave is on disk: rollouts, metrics, and the
    exported weights where they were due."""

    status: RunStatus
    step: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    """JSON-able state of the driver after them (`controller.progress.RunProgress`); empty before the first."""
    message: str | None = None
    """Why it failed or was interrupted."""
    goes_on_s: float | None = None
    """Of one that failed and whose process goes on with it by itself: when, since 1970."""

    @property
    def is_over(self) -> bool:
        """Whether it says itself that it has ended."""
        return self.status != "running" and self.goes_on_s is None


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run. `create` makes a new directory, `open` one that exists."""

    path: Path

    @classmethod
    def create(cls, config: RunConfig, *, source: Path | None, verb: str, fragments: Sequence[Path] = ()) -> Self:
        """Make `<logging.directory>/<name>-<verb>-<UTC time>` and point `latest` beside it there, unless it trains
        nothing ("eval").

        source: the configuration file the user gave, kept word for word; None when there was none. fragments: the
        files laid over it, kept likewise.
        A second run in the same second gets a number appended; an existing directory is never touched.
        """
        started = datetime.now(UTC)
        parent = Path(config.logging.directory).expanduser().resolve()
        parent.mkdir(parents=True, exist_ok=True)
        run = cls(make_numbered(parent, f"{config.name}-{verb}-{started:%Y%m%dT%H%M%SZ}"))
        for folder in (run.rollouts, run.checkpoints, run.exports, run.logs, run.figures):
            folder.mkdir()
        run._write_config(config, source, fragments)
        facts = {"verb": verb, "id": secrets.token_hex(4), "started": started.isoformat(timespec="seconds")}
        run._write_versions(facts | _describe_sources(source, fragments) | collect_versions())
        run.write_state(RunState(status="running"))
        if verb != "eval":
            _point_latest(parent / "latest", run.path.name)
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """An existing run directory, `latest` included. FileNotFoundError when `path` is none."""
        run = cls(Path(path).expanduser().resolve())
        if not run.state_path.is_file():
            raise FileNotFoundError(f"{path} is no run directory: it has no state.json; expected one that megarl made")
        return run

    def go_on(
        self,
        config: RunConfig,
        *,
        before: RunConfig,
        state: RunState,
        sources: Sequence[Path] = (),
        changes: Sequence[str] = (),
        allowed: Sequence[str] = (),
    ) -> None:
        """Open the run again after `state.step` of its steps, which this process drives from now on.

        config: of the steps to come; before: of those that are made. sources: the files it was read from. changes,
        allowed: what is other than it was and who said that it may be, for versions.json.
        """
        self.write_state(state)
        for folder in (self.rollouts, self.checkpoints, self.exports, self.logs, self.figures):
            folder.mkdir(exist_ok=True)
        source, *fragments = sources or (None,)
        facts = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "after_step": state.step,
            "changes": list(changes),
            "allowed": list(allowed),
            **_describe_sources(source, fragments),
        }
        versions = {"id": secrets.token_hex(4)} | self.read_versions()  # an earlier version of megarl gave none
        # What may be changed before what is: who dies in between is not asked again.
        self._write_versions(versions | {"went_on": [*versions.get("went_on", ()), facts | collect_versions()]})
        self._replace_config(config, before, step=state.step)
        if versions.get("verb") != "eval":
            _point_latest(self.path.parent / "latest", self.path.name)

    @property
    def run_id(self) -> str:
        """Eight hexadecimal digits that no other run has, for others who must know it again."""
        return str(self.read_versions()["id"])

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def versions_path(self) -> Path:
        return self.path / "versions.json"

    @property
    def state_path(self) -> Path:
        return self.path / "state.json"

    @property
    def heartbeat_path(self) -> Path:
        return self.path / "heartbeat.json"

    @property
    def restarts_path(self) -> Path:
        return self.path / "restarts.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def updates_path(self) -> Path:
        return self.path / "updates.jsonl"

    @property
    def timeline_path(self) -> Path:
        return self.path / "timeline.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def exports(self) -> Path:
        return self.path / "hf"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def rollouts_path(self, step: int) -> Path:
        """rollouts/step-000012.parquet: zero-padded so that names sort by step."""
        return self.rollouts / f"step-{step:06d}.parquet"

    def log_path(self, role: str, rank: int) -> Path:
        return self.logs / f"{role}-{rank}.log"

    def write_state(self, state: RunState) -> None:
        """Replace state.json; after a crash it holds this state or the one before, never half of one.

        A running state names this process as the one that drives the run, and so does one that goes on by itself.
        """
        facts = asdict(state) | {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
        if state.status == "running" or state.goes_on_s is not None:
            facts["driver"] = ProcessMark.of(os.getpid()).as_json()
        write_text_atomically(self.state_path, json.dumps(facts, indent=2, allow_nan=False) + "\n")

    def read_state(self) -> RunState:
        """The state of the last `write_state`, of this run's earlier process too. ValueError where it is damaged."""
        facts = _read_object(self.state_path, "status")
        # What else is in it is for other readers (`updated`, `driver`) or from another version of megarl.
        return RunState(**{one.name: facts[one.name] for one in fields(RunState) if one.name in facts})

    def standing(self) -> tuple[Standing, str | None]:
        """(the run's status as it is now, why). state.json alone would say "running" of a run that was killed, and
        "failed" of one that is about to go on."""
        state = self.read_state()
        if state.is_over:
            return state.status, state.message
        return judge_state(state, self.driver(), age_s=time.time() - self.state_path.stat().st_mtime)

    def driver(self) -> ProcessMark | None:
        """The process that drives the run, or drove it last; None where state.json does not say."""
        mark = _read_object(self.state_path, "status").get("driver")
        return None if mark is None else ProcessMark.from_json(mark)

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """While the block runs, touch state.json: who cannot see this process sees that the run lives."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(PULSE_S):
                with suppress(OSError):
                    os.utime(self.state_path)

        thread = threading.Thread(target=beat, name="megarl-pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def read_versions(self) -> dict[str, Any]:
        """What `create` noted: verb, id, started, source, fragments and `collect_versions()`; and by "went_on" what
        `go_on` did, each time. ValueError where it is damaged."""
        return _read_object(self.versions_path, "verb")

    def _write_versions(self, facts: dict[str, Any]) -> None:
        write_text_atomically(self.versions_path, json.dumps(facts, indent=2) + "\n")

    def _replace_config(self, config: RunConfig, before: RunConfig, *, step: int) -> None:
        """config.toml need not be `before`: another process may have died before it made a step under it."""
        for path in self.path.glob("config.step-*.toml"):
            number = path.stem.rpartition("-")[2]
            if number.isdecimal() and int(number) >= step:  # of steps that are made again
                path.unlink()
        old, text = dump_config(before), dump_config(config)
        if step and text != old:
            write_text_atomically(self.path / f"config.step-{step:06d}.toml", old)
        if text != self.config_path.read_text(encoding="utf-8"):
            write_text_atomically(self.config_path, text)

    def _write_config(self, config: RunConfig, source: Path | None, fragments: Sequence[Path]) -> None:
        write_text_atomically(self.config_path, dump_config(config))
        if source is not None:
            write_text_atomically(self.path / "config.source", source.read_text(encoding="utf-8"))
        for number, fragment in enumerate(fragments, start=1):
            name = f"config.source.{number}-{fragment.name}"
            write_text_atomically(self.path / name, fragment.read_text(encoding="utf-8"))


def judge_state(state: RunState, driver: ProcessMark | None, *, age_s: float) -> tuple[Standing, str | None]:
    """`RunDirectory.standing` of what state.json holds; age_s: since that was last touched."""
    if state.is_over:
        return state.status, state.message
    judged = judge_running(driver, age_s=age_s)
    if state.goes_on_s is None:
        return judged
    if judged[0] != "running":
        return state.status, state.message
    return "running", f"it goes on at {datetime.fromtimestamp(state.goes_on_s):%H:%M:%S} after: {state.message}"


def judge_running(mark: ProcessMark | None, *, age_s: float) -> tuple[Standing, str | None]:
    """(status, why) of a run whose state says that it runs, driven by `mark`; age_s: since it was last touched."""
    match mark.standing(age_s=age_s) if mark else "elsewhere":
        case "alive":
            return "running", None
        case "dead":
            assert mark is not None
            return "killed", f"its process {mark.pid} on {mark.host} is gone and could not say why: it was killed"
    where = f"its process {mark.pid} on {mark.host}" if mark else "its process"
    if age_s < _SILENT_S:
        return "running", None
    return "killed", f"{where} has given no sign of life for {age_s / 60:.0f} minutes; it cannot be looked up from here"


def _read_object(path: Path, key: str) -> dict[str, Any]:
    """A JSON object that has this key. ValueError where the file holds something else."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or key not in facts:
        raise ValueError(f'{path} is damaged: expected a JSON object with a "{key}", found {text[:80]!r}')
    return facts


def _describe_sources(source: Path | None, fragments: Sequence[Path]) -> dict[str, Any]:
    return {"source": str(source) if source else None, "fragments": [str(fragment) for fragment in fragments]}


def make_numbered(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `name-2` and so on where that exists: no directory is ever shared or touched twice."""
    attempt = 1
    while True:
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def _point_latest(link: Path, target: str) -> None:
    """Move the `latest` link in one step, so that it always points at a run."""
    if link.exists() and not link.is_symlink():
        _log.warning(
            "%s is no symbolic link, so it is left alone; remove it to have `latest` point at the newest run", link
        )
        return
    partial = link.with_name(f".latest.{target}.partial")  # the run's name is its own, so runs started together agree
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed just here
        partial.symlink_to(target)
        os.replace(partial, link)
    except OSError as error:  # a run that was moved, to where only its own directory may be written
        _log.warning("%s is left as it is: %s", link, error.strerror or error)
