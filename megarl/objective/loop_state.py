"""The closed loop of a clip between steps and updates: its target, what its error has added up to, where its knob is.

A step's entropy is what controllers see (`controllers`). The target is the one for the end of the step. Before a step's
first update nothing is known of its own effect, so the integral acts from step to step: the relative error that the
step before has left, times `integral`, moves the share that is asked for from now on; not further to a side on which
the last update's bounds were at their end.
"""

from typing import Any

from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.telemetry.state import check_keys

_START = 0.5
"""The knob's place before anything was chosen."""


class LoopState:
    """Call `begin_step` once per step and `end_update` after each of its updates."""

    def __init__(self, clip: ClosedLoopClip | ClosedLoopFlexEcClip, *, total_steps: int) -> None:
        self._loop, self._total_steps = clip.loop, total_steps
        self._knob, self._offset = _START, 0.0
        self._target: float | None = None
        self._short = 0.0
        """Share that was wanted of the last update, less what its bounds gave."""

    @property
    def target(self) -> float | None:
        """Of the step that was begun last, nats per token."""
        return self._target

    @property
    def offset(self) -> float:
        return self._offset

    def begin_step(self, step: int, *, entropy: float, entropy_start: float) -> LoopControls:
        """The loop's numbers for the step's first update. ValueError where the target would not be above 0."""
        if self._target is not None:
            error = (self._target - entropy) / self._target
            at_the_end = abs(self._short) > self._loop.band and self._short * error > 0
            if not at_the_end:
                self._offset = min(max(self._offset + self._loop.integral * error, -1.0), 1.0)
        target = self._loop.target(steps_done=step, total_steps=self._total_steps, entropy_start=entropy_start)
        if not target > 0:
            raise ValueError(
                f"the entropy wanted after step {step} is {target:g} nats per token: the run's first entropy was "
                f'{entropy_start:g}, and objective.clip.loop.unit is "{self._loop.unit}"; a policy without entropy '
                'cannot be steered relative to it, set unit to "nats"'
            )
        self._target = target
        return LoopControls(target=target, entropy=entropy, offset=self._offset, knob=self._knob)

    def end_update(self, choice: LoopChoice) -> float:
        """Where the knob is now."""
        self._knob, self._short = choice.knob, choice.wanted - choice.predicted
        return self._knob

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"knob": self._knob, "offset": self._offset, "target": self._target, "short": self._short}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. ValueError when it has other keys."""
        check_keys(state, self.state_dict(), what="closed loop")
        target = state["target"]
        self._knob, self._offset, self._short = (float(state[key]) for key in ("knob", "offset", "short"))
        self._target = None if target is None else float(target)
