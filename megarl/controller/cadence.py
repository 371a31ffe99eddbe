"""After which steps a run is saved, and when its time is over. Pure but for the clocks it is given.

What lasts is told by a clock that nobody sets; only the end of the run is a time of day.
"""

import time
from collections.abc import Callable

from megarl.config.checkpoint import CheckpointConfig


class Cadence:
    """Knows of the steps and the saves what decides about the next ones."""

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        steps: int,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """steps: of the run. clock: seconds since 1970. timer: seconds since any moment. ConfigError where the end time
        cannot be told."""
        self._config, self._steps, self._clock, self._timer = config, steps, clock, timer
        self._ends_at = config.ends_at()
        self._saved_at = self._step_began = timer()
        self._longest_step_s = self._longest_save_s = 0.0

    def begin(self) -> None:
        """The first step begins: what came before, the start of the workers, is no step."""
        self._saved_at = self._step_began = self._timer()

    def end_step(self) -> None:
        """A step has ended, and the next one begins."""
        now = self._timer()
        self._longest_step_s = max(self._longest_step_s, now - self._step_began)
        self._step_began = now

    def begin_save(self) -> None:
        """The minutes until the next save count from here."""
        self._saved_at = self._timer()

    def end_save(self, seconds: float) -> None:
        """A save took so long until it was complete."""
        self._longest_save_s = max(self._longest_save_s, seconds)

    def save_due(self, step: int) -> bool:
        """Whether the run is saved after `step`: also after its last, where it saves at all."""
        config = self._config
        if not config.on:
            return False
        by_steps = config.every_steps > 0 and step % config.every_steps == 0
        by_time = config.every_minutes > 0 and self._timer() - self._saved_at >= 60 * config.every_minutes
        return by_steps or by_time or step == self._steps

    def time_is_over(self) -> str | None:
        """Why the run must stop now; None where another of its longest steps, and a save, end in time."""
        if self._ends_at is None:
            return None
        needed_s = self._longest_step_s + self._longest_save_s + self._config.end_margin_s
        left_s = self._ends_at - self._clock()
        if needed_s <= left_s:
            return None
        return (
            f"checkpoint.end_time is in {max(left_s, 0.0):.0f} s, and another step needs {needed_s:.0f} s (the longest "
            f"step {self._longest_step_s:.0f} s, the longest save {self._longest_save_s:.0f} s, "
            f"checkpoint.end_margin_s {self._config.end_margin_s:.0f} s)"
        )
