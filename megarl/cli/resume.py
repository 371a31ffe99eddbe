"""`megarl train --resume`: which run goes on, from where, and under which configuration.

All of it is settled, and refused where it must be, before anything of the run is touched. Of the checkpoint's files the
sizes are looked at; what is in them is compared with its checksums by the ranks that read it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megarl.checkpoint.manifest import MANIFEST_FILE
from megarl.checkpoint.run_checkpoint import RunCheckpoint, list_checkpoints, read_checkpoints
from megarl.cli.paths import resolve_model_path, shown_path
from megarl.cli.resume_text import describe_going_on
from megarl.cli.run_paths import find_run, open_checkpoint
from megarl.config.base import ConfigError
from megarl.config.changes import find_changes, find_refusals
from megarl.config.loader import load_config, source_files, told_apart
from megarl.config.run import RunConfig
from megarl.telemetry.cut_back import cut_back, find_gaps
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import PULSE_S, RunDirectory, RunState
from megarl.telemetry.run_lock import RunHeldError, hold_run

_SILENT_PULSES = 3
"""A run whose process cannot be looked up from here is over when it has given no sign of life for so many pulses."""
_LOOK_EVERY_S = 1.0
_END_S = 60.0
"""For the end of a run beyond its last save: processes, figures."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A run that goes on."""

    directory: RunDirectory
    checkpoint: RunCheckpoint | None
    """From which; None: there is no complete one, and it starts over."""
    before: RunConfig
    """The configuration of the steps that are finished."""
    about: tuple[str, ...]
    """Lines for a person: from where it goes on, and what is other than it was."""
    changes: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Steps that are finished."""
        return self.checkpoint.step if self.checkpoint else 0

    def placed(self, config: RunConfig) -> RunConfig:
        """The configuration as a check of files and disks reads it: the run is written where it lies, not where a new
        one would be."""
        logging = config.logging.model_copy(update={"directory": str(self.directory.path)})
        return config.model_copy(update={"logging": logging})

    def open(self, config: RunConfig, *, sources: Sequence[Path]) -> RunDirectory:
        """The run's directory, which this process drives from now on."""
        progress = self.checkpoint.manifest.progress if self.checkpoint else {}
        self.directory.go_on(
            config,
            before=self.before,
            state=RunState(status="running", step=self.step, progress=progress),
            sources=sources,
            changes=self.changes,
            allowed=self.allowed,
        )
        return self.directory

    def cut_back(self) -> list[str]:
        """Take away what the run's files have of later steps; lines that say so, and what they lack of earlier ones."""
        cut = [f"cut    {line}" for line in cut_back(self.directory, step=self.step)]
        told = self.checkpoint.manifest.telemetry if self.checkpoint else {}
        return cut + [f"warning: {line}" for line in find_gaps(self.directory, told, step=self.step)]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What follows `megarl train --resume RUN`."""

    config: Path | None
    """None: the run's own configuration."""
    overrides: tuple[str, ...]
    allowed: tuple[str, ...]

    @classmethod
    def of(cls, config: Path | None, overrides: Sequence[str], allowed: Sequence[str]) -> "Arguments":
        """As they were typed; see `told_apart`."""
        config, overrides = told_apart(config, overrides)
        return cls(config=config, overrides=tuple(overrides), allowed=tuple(allowed))

    @property
    def sources(self) -> list[Path]:
        """The files that were given."""
        return [*([self.config] if self.config else []), *source_files(self.overrides)]


def resume(path: Path, arguments: Arguments, *, patient: bool = False) -> tuple[RunConfig, Resumed]:
    """(the configuration of the steps to come, how the run goes on), which this process drives from now on.

    patient: a process that still drives the run is about to end, as where a job was requeued, and is waited for.

    Raises:
        ConfigError: it cannot go on, with the reason.
        RunHeldError: that process has not ended in time.
    """
    with _saying(path):
        run, named = _find_run(path)
        _take(run, patient=patient)
        checkpoint = _choose(run, named)
    config = _load(run, arguments)
    old = _earlier_config(run, checkpoint)
    changes = find_changes(old, config)
    allowed = [*arguments.allowed, *_allowed_before(run, after_step=checkpoint.step if checkpoint else 0)]
    problems = find_refusals(changes, allowed) if checkpoint else []
    if checkpoint and checkpoint.step > config.train.steps:
        problems.append(
            f"train.steps {config.train.steps}: the run has finished step {checkpoint.step}; raise it, or go on from "
            f"an earlier checkpoint in {shown_path(checkpoint.path.parent)}"
        )
    if problems:
        raise ConfigError("\n".join([f"megarl train --resume {path}:", *problems]), problems)
    return config, Resumed(
        directory=run,
        checkpoint=checkpoint,
        before=old,
        about=tuple(describe_going_on(run, checkpoint, config, changes)),
        changes=tuple(map(str, changes)),
        allowed=tuple(dict.fromkeys(allowed)),
    )


def find_checkpoint(path: Path) -> tuple[RunDirectory, RunCheckpoint | None]:
    """The run that `path` means, and the checkpoint that it goes on from: the one that was named, else the newest.

    path: a run directory or a link to one, RUN/latest, RUN/checkpoints, or a checkpoint of a run.
    """
    with _saying(path):
        run, named = _find_run(path)
        return run, _choose(run, named)


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    """What is wrong with the run's own files is one line, as what is wrong with a configuration is."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:  # a ConfigError is one
        raise ConfigError(f"megarl train --resume {path}: {error}") from error


def _find_run(path: Path) -> tuple[RunDirectory, Path | None]:
    """A run of `megarl train`, and the checkpoint that was named."""
    run, named = find_run(path)
    if run is None:
        raise ConfigError(
            f"this checkpoint lies in no run directory; put it back into RUN/checkpoints, or begin a new run from "
            f"its weights with train.init_from={path}"
        )
    if (verb := run.read_versions()["verb"]) != "train":
        raise ConfigError(
            f"{shown_path(run.path)} is a run of `megarl {verb}`, which saves only its last weights; run it anew"
        )
    return run, named


def _take(run: RunDirectory, *, patient: bool) -> None:
    """Drive the run. Nothing that is read of it from here on can be changed by another process meanwhile.

    patient: wait for a process that still drives it, as long as it may take to save and stop; RunHeldError when it has
    not. Otherwise ConfigError at once.
    """
    patience_s = _patience_s(run) if patient else 0.0
    until = time.monotonic() + patience_s
    held = said = False
    while True:
        try:
            if not held:
                hold_run(run.path)
            held = True
            _await_end(run)
            return
        except RunHeldError as error:
            if not patient:
                raise ConfigError(f"{shown_path(run.path)} is still running: {error}; stop it first") from error
            if time.monotonic() > until:
                text = f"{shown_path(run.path)} is still running after {patience_s:g} s: {error}; stop it first"
                raise RunHeldError(text) from error
            if not said:
                print(f"waiting, for {patience_s:g} s at most, until {shown_path(run.path)} has stopped: {error}")
            said = True
            time.sleep(_LOOK_EVERY_S)


def _patience_s(run: RunDirectory) -> float:
    return load_config(run.config_path).checkpoint.stop_within_s + _END_S


def _choose(run: RunDirectory, named: Path | None) -> RunCheckpoint | None:
    complete = list_checkpoints(run.checkpoints)
    if named is None:
        if not complete:
            _check_starting_over(run)
            return None
        checkpoint = complete[-1]
    else:
        checkpoint = open_checkpoint(named)
        newer = [shown_path(other.path) for other in complete if other.step > checkpoint.step]
        if newer:
            raise ConfigError(
                f"the run has newer checkpoints ({', '.join(newer)}), from which it would go on the next time; remove "
                f"or move them first, or resume {shown_path(run.path)}"
            )
    _check_owner(run, checkpoint)
    return checkpoint


def _check_starting_over(run: RunDirectory) -> None:
    """Nothing is begun again, and so taken away, that could have been gone on with. ConfigError with what to do."""
    where = shown_path(run.checkpoints)
    if not run.checkpoints.is_dir():
        raise ConfigError(
            f"{where} is not there, where the run's checkpoints were: put it back, or mount the disk that it lies on. "
            "To start this run over make the directory, empty"
        )
    names = sorted(path.name for path in run.checkpoints.iterdir() if not path.name.startswith("."))
    if names:
        _, faults = read_checkpoints(run.checkpoints)
        said = f"{where} has {', '.join(names)}, none of which can be gone on from; move them away to start it over"
        raise ConfigError("\n".join([said, *faults]))
    if run.read_state().status == "finished":
        raise ConfigError(
            f"{shown_path(run.path)} is finished, and saved nothing to go on from (`[checkpoint]`): its files stay as "
            f"they are. Begin a new run from its weights with model.path={_exported(run)}"
        )


def _check_owner(run: RunDirectory, checkpoint: RunCheckpoint) -> None:
    """ConfigError where another run has written the checkpoint: its rows are not those of this one."""
    writer, own = checkpoint.manifest.telemetry.get("id"), run.read_versions().get("id")
    if writer is not None and writer != own:
        raise ConfigError(
            f"{shown_path(checkpoint.path)} is of another run (its id is {writer}, that of this one {own}); move it "
            f"away, or begin a new run from its weights with train.init_from={shown_path(checkpoint.path)}"
        )


def _exported(run: RunDirectory) -> str:
    """The last weights that it exported."""
    exports = sorted(run.exports.glob("step-*"))
    return shown_path(exports[-1] if exports else run.exports)


def _await_end(run: RunDirectory) -> None:
    """RunHeldError while the run's process lives. One that cannot be looked up from here is listened to: it touches
    state.json as long as it lives."""
    driver = run.driver()
    if run.standing()[0] != "running" or (
        run.read_state().goes_on_s is not None and driver == ProcessMark.of(os.getpid())
    ):
        return  # or it is this one, which goes on by itself
    until = time.monotonic() + _SILENT_PULSES * PULSE_S
    touched = run.state_path.stat().st_mtime
    if driver is not None and driver.standing() == "elsewhere":
        print(f"waiting {_SILENT_PULSES * PULSE_S:g} s for a sign of life of process {driver.pid} on {driver.host}")
        while time.monotonic() < until and run.state_path.stat().st_mtime == touched:
            time.sleep(_LOOK_EVERY_S)
        if run.state_path.stat().st_mtime == touched:
            return
    raise RunHeldError(f"it is driven by process {driver.pid} on {driver.host}" if driver else "by whom is not known")


def _load(run: RunDirectory, arguments: Arguments) -> RunConfig:
    """With the day that the run's prompts show, and the output head that was decided when it began, where nobody says
    another."""
    config = resolve_model_path(load_config(arguments.config or run.config_path, arguments.overrides))
    if config.data.date is not None and config.policy.head != "auto":
        return config
    own, data, policy = load_config(run.config_path), config.data, config.policy
    if data.date is None:
        data = data.model_copy(update={"date": own.data.date})
    if policy.head == "auto":
        policy = policy.model_copy(update={"head": own.policy.head})
    return config.model_copy(update={"data": data, "policy": policy})


def _earlier_config(run: RunDirectory, checkpoint: RunCheckpoint | None) -> RunConfig:
    if checkpoint is None:
        return load_config(run.config_path)
    try:
        return RunConfig.model_validate(checkpoint.manifest.config)
    except ValueError as error:
        raise ConfigError(
            f"{checkpoint.path / MANIFEST_FILE} has a configuration that this version of megarl does not read; go on "
            f"with the version that wrote it ({checkpoint.manifest.versions.get('git')}): {error}"
        ) from error


def _allowed_before(run: RunDirectory, *, after_step: int) -> list[str]:
    """What was allowed when the run went on from this checkpoint or a later one: nobody has to say it twice."""
    earlier = run.read_versions().get("went_on", ())
    return [path for facts in earlier if facts["after_step"] >= after_step for path in facts["allowed"]]
