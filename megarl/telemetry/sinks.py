"""Where the metrics of a step go: metrics.jsonl always, Weights & Biases and TensorBoard on request.

metrics.jsonl holds one valid JSON object per line: the step, the timestamp (seconds since 1970, UTC) and the metrics.
What differs between runs of one configuration and seed is the timestamp and what is under timing_s/, perf/ and memory/;
all else is equal (tests/e2e/test_equal_runs.py). JSON has no NaN and no infinity, so both are written as null: the
name was logged and had no finite value. A run that goes on after a step finds no rows beyond it (`cut_back`).
A sink that fails does not stop the run: it is reported once, tried again at every step, and counted at the end.
"""

import json
import logging
import math
import os
import shlex
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.telemetry.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_WANDB_FINISH_S = 120.0


class Sink(Protocol):
    """One destination of the metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl: a line is in the file, whole, before `log` returns."""

    def __init__(self, path: Path) -> None:
        """`path` is continued when it exists, after dropping a last line that was cut in half."""
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._end = _end_of_last_line(path)
        self._file.truncate(self._end)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write {"step": step, "timestamp": now, **values}. A failed write (disk full) leaves no partial line."""
        numbers = {name: _json_number(value) for name, value in values.items() if name != "step"}
        line = {"step": step, "timestamp": round(time.time(), 3), **numbers}
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            if (written := self._file.write(data)) != len(data):
                raise OSError(f"{self._file.name}: {written} of {len(data)} bytes written; is the disk full?")
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)

    def position(self) -> int:
        """Bytes that the file has."""
        return self._end

    def flush(self) -> None:
        """Return when all of it is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class WandbSink:
    """Weights & Biases, files in the run directory. Offline when nobody is logged in; `wandb sync` sends it later.

    A run that goes on is the same run there. Online its steps are logged on; those that it repeats, and that the server
    has, are left out by W&B: they are equal. Offline, where wandb cannot go on with a file, a new one is begun with the
    rows that metrics.jsonl has, and the earlier ones are removed: one file holds the run, to be sent as any other.
    """

    def __init__(self, *, project: str, run: RunDirectory, config: Mapping[str, Any], after_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "logging.wandb_project is set but wandb is not installed: pip install 'megarl[wandb]' or remove the key"
            ) from error
        online = wandb.setup().settings.mode == "online" and wandb.login(prompt=False, verify=False)
        earlier = list((run.path / "wandb").glob("offline-run-*"))
        self._run = wandb.init(
            project=project,
            id=run.run_id,
            name=run.path.name,
            dir=str(run.path),
            config=_finite(config),
            mode="online" if online else "offline",
            resume="allow" if online else None,
            allow_val_change=True,
        )
        self._offline, self._later = not online, sync_command(self._run.dir)
        if self._offline:
            self._log_again(run.metrics_path, after_step)
            for directory in set(earlier) - {Path(self._run.dir).parent}:
                shutil.rmtree(directory)
            _log.info("not logged in to Weights & Biases; to send this run later: %s", self._later)

    def _log_again(self, path: Path, after_step: int) -> None:
        """The rows of the steps up to `after_step`, as far as JSON has kept them: what was not finite is NaN."""
        rows, damaged = read_readable_metrics(path) if after_step else ([], {})
        for line, reason in damaged.items():
            _log.warning("%s, line %d is not sent: %s", path, line, reason)
        for row in rows:
            step = int(row.pop("step") or 0)
            row.pop("timestamp", None)  # of a row that somebody has edited
            self.log(step, {name: math.nan if value is None else value for name, value in row.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        # In a thread: without a network, finishing an online run tries for days.
        finishing = threading.Thread(target=self._run.finish, name="megarl-wandb", daemon=True)
        finishing.start()
        finishing.join(_WANDB_FINISH_S)
        if finishing.is_alive():
            _log.error("Weights & Biases did not take all of this run within %g s", _WANDB_FINISH_S)
        if finishing.is_alive() or self._offline:
            _log.info("to send this run to Weights & Biases: %s", self._later)


class TensorboardSink:
    """TensorBoard event files, written by tensorboard itself: neither torch nor tensorflow is needed."""

    def __init__(self, directory: Path, *, after_step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "logging.tensorboard is true but tensorboard is not installed: pip install 'megarl[tensorboard]' or "
                "set it to false"
            ) from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))
        if after_step:
            # A TensorBoard that is running has read steps that were cut from the files: this makes it forget them.
            begun = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=after_step + 1, wall_time=time.time(), session_log=begun))
            self._writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """Several sinks as one, none of which can stop the run."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._lost = [0] * len(self._sinks)
        self._lost_before = [0] * len(self._sinks)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give the step to every sink; what fails is logged as an error the first time."""
        for index, sink in enumerate(self._sinks):
            try:
                sink.log(step, values)
            except Exception:
                self._lost[index] += 1
                if self._lost[index] == 1:
                    _log.exception(
                        "%s failed at step %d; THE RUN GOES ON, this step is missing there; later steps are tried "
                        "again without another message",
                        type(sink).__name__,
                        step,
                    )

    def positions(self) -> dict[str, int]:
        """By its name, how many bytes each file of rows has."""
        return {sink.path.name: sink.position() for sink in self._sinks if isinstance(sink, JsonlSink)}

    def flush(self) -> None:
        """Return when the rows are on the disk; a disk that does not take them is logged."""
        for sink in self._sinks:
            if isinstance(sink, JsonlSink):
                try:
                    sink.flush()
                except OSError as error:
                    _log.warning("%s is not on the disk: %s", sink.path, error)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: by its kind, how many steps each sink has lost in all."""
        return {type(sink).__name__: lost for sink, lost in zip(self._sinks, self._lost_in_all(), strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from `state`; other sinks than there were begin at none, as the run may be told to use others."""
        self._lost_before = [int(state.get(type(sink).__name__, 0)) for sink in self._sinks]

    def close(self) -> None:
        """Close every sink and say how many steps each has lost."""
        for sink, lost in zip(self._sinks, self._lost_in_all(), strict=True):
            if lost:
                _log.error("%s lost %d steps in all", type(sink).__name__, lost)
            try:
                sink.close()
            except Exception:
                _log.exception("%s failed to close", type(sink).__name__)

    def _lost_in_all(self) -> list[int]:
        return [before + now for before, now in zip(self._lost_before, self._lost, strict=True)]


def build_sinks(config: RunConfig, *, run: RunDirectory, after_step: int = 0) -> Sinks:
    """The sinks `config.logging` asks for. One that cannot start raises: better now than a run nobody can see.

    after_step: of a run that goes on, whose files are cut back to it.
    """
    sinks: list[Sink] = [JsonlSink(run.metrics_path)]
    if (project := config.logging.wandb_project) is not None:
        sinks.append(WandbSink(project=project, run=run, config=config.model_dump(), after_step=after_step))
    if config.logging.tensorboard:
        sinks.append(TensorboardSink(run.tensorboard, after_step=after_step))
    return Sinks(sinks)


def build_update_sinks(*, run: RunDirectory) -> Sinks:
    """Where the metrics of single optimizer updates go: updates.jsonl, with an "update" counted from 0 in each step."""
    return Sinks([JsonlSink(run.updates_path)])


def sync_command(directory: str | Path) -> str:
    """What sends an offline run of Weights & Biases, for a shell in any directory.

    directory: `run.dir` of wandb, which is the folder "files" in the one that `wandb sync` wants.
    """
    return f"wandb sync {shlex.quote(str(Path(directory).resolve().parent))}"


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a metrics.jsonl by step. Of a step logged twice (resume) the later row; a torn last line is left out.

    ValueError, naming the line, when a complete line is no JSON object with a step.
    """
    rows, damaged = read_readable_metrics(path)
    for line, reason in damaged.items():
        if reason != TORN:
            raise ValueError(f"{path}, line {line}: {reason}")
    return rows


TORN = "cut in half, as a killed run leaves it"


def read_readable_metrics(path: Path) -> tuple[list[dict[str, float | None]], dict[int, str]]:
    """(`read_metrics` of the lines that can be read, by number what is wrong with the others)."""
    rows: dict[int, dict[str, float | None]] = {}
    damaged = {}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            damaged[number] = TORN
            break
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError):
            damaged[number] = f'expected a JSON object with a "step", found {line[:80]!r}'
    return [rows[step] for step in sorted(rows)], damaged


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _finite(value: Any) -> Any:
    """`value` with infinities as text: the W&B server reads the configuration as JSON."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _end_of_last_line(path: Path) -> int:
    """Offset just after the last newline; 0 in an empty file. Reads back from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                return start + newline + 1
            end = start
    return 0
