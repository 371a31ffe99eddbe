"""When a run saves itself, and which of its checkpoints it keeps."""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megarl.config.base import Config, ConfigError, raise_problems

BATCH_JOB = "slurm"
_JOB_END = "SLURM_JOB_END_TIME"


def _time_text(value: Any) -> Any:
    """TOML has times of its own, which are taken as the text they are."""
    return value.isoformat() if isinstance(value, datetime) else value


class CheckpointConfig(Config):
    """What `megarl train --resume` goes on from: model, optimizer, reference, and the state of the run. Written beside
    training, below checkpoints/ of the run directory. One that fails is reported, and the run goes on.

    From its first save on, a policy rank holds a copy of what it saves in host memory: of a model in bfloat16 all ranks
    together 14 bytes a parameter (float32: 12), 2 (4) more with a reference; a data rank its share of that.
    """

    every_steps: int = Field(0, ge=0)
    """Save after every so many steps; 0: not by steps."""
    every_minutes: float = Field(0.0, ge=0)
    """Save after the first step that ends so long after the last save began; 0: not by time."""
    keep_last: int = Field(2, ge=1)
    """The newest checkpoints that are kept; older ones are removed when a newer one is complete."""
    keep_every_steps: int = Field(0, ge=0)
    """Checkpoints after a multiple of so many steps are kept too; 0: none."""
    keep_best: str | None = None
    """A name in metrics.jsonl: the checkpoint after the best step by it is kept too."""
    keep_best_by: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value of `keep_best` is the best."""
    end_time: Annotated[str | None, BeforeValidator(_time_text)] = None
    """When the run must have ended: a time with its zone (2026-12-24T18:00:00+01:00), or "slurm" for the end of the job
    it runs in. It stops, saved, after the last step that leaves room for another of the longest there was."""
    end_margin_s: float = Field(120.0, ge=0)
    """Seconds before `end_time` that are kept free for ending the workers, beyond what a step and a save take."""
    stop_within_s: float = Field(600.0, gt=0)
    """After SIGUSR1, and after SIGTERM where the run saves at all, it finishes its step, saves and stops. What is not
    done after so many seconds is given up, and the run stops at once: less than whoever sends the signal waits."""
    timeout_s: float = Field(1800.0, gt=0)
    """A save that is not complete after this long has failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return raise_problems(self, (_check_end_time,))

    @property
    def on(self) -> bool:
        """Whether the run saves without being told to by a signal."""
        return self.every_steps > 0 or self.every_minutes > 0 or self.end_time is not None

    def ends_at(self, environment: Mapping[str, str] = os.environ) -> float | None:
        """`end_time` in seconds since 1970; None where the run may last. ConfigError where "slurm" cannot be told."""
        if self.end_time is None:
            return None
        if self.end_time != BATCH_JOB:
            return datetime.fromisoformat(self.end_time).timestamp()
        text = environment.get(_JOB_END, "")
        if not text.isdecimal():
            found = f"is {text!r}" if text else "is not set"
            raise ConfigError(
                f'checkpoint.end_time is "{BATCH_JOB}", but {_JOB_END}, by which Slurm tells when a job ends, {found}; '
                "start the run in a Slurm job, or give a time with its zone"
            )
        return float(text)

    def check_end(self, now: float, environment: Mapping[str, str] = os.environ) -> None:
        """ConfigError where the run's time was over `now` (seconds since 1970), or its end cannot be told."""
        ends_at = self.ends_at(environment)
        if ends_at is not None and ends_at <= now:
            raise ConfigError(
                f'checkpoint.end_time "{self.end_time}" was {(now - ends_at) / 60:.0f} minutes ago: the run would stop '
                "after its first step; give a later one"
            )


def _check_end_time(config: CheckpointConfig) -> Iterator[str]:
    text = config.end_time
    if text is None or text == BATCH_JOB:
        return
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}+00:00"
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        yield f'checkpoint.end_time: expected "{BATCH_JOB}" or a time such as {now}, found "{text}"'
        return
    if time.tzinfo is None:
        yield f'checkpoint.end_time: expected a time with its zone, such as {now}, found "{text}"; add Z or +01:00'
