"""What changes coefficients while the run goes on: one state machine for the configured objective.

A step's entropy is the exact mean over its response tokens, under the weights before the step's first update. Every
controller sees it before it sets the step's numbers, so what was measured acts at once. H_start is the first step's.
Numbers that no controller moves are those of the config.
"""

import math
from copy import copy
from dataclasses import replace
from typing import Any

from megarl.config.auxiliary import AdaptiveEntropyCoefficient, AerStyleCoefficient, ReferenceReset
from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import FlexEcClip
from megarl.objective.averages import AdvantageAverages
from megarl.objective.loop_numbers import LoopChoice
from megarl.objective.loop_state import LoopState
from megarl.objective.schedules import Line, flexec_lines, flexec_raises
from megarl.objective.tokens import Controls
from megarl.telemetry.metrics import Metrics, declared
from megarl.telemetry.state import check_keys

_SHOWN_PROBABILITY = 0.5
"""Where FlexEC's distances are logged; they are lines, so another probability says no more."""


class ControllerState:
    """Call `begin_step` and `end_step` once per step, in order; `metrics` tells of the last one."""

    def __init__(self, objective: ObjectiveConfig, *, total_steps: int, seed: int) -> None:
        """total_steps: of the whole run (train.steps). seed: train.seed, handed on in `Controls`."""
        self._objective, self._total_steps, self._seed = objective, total_steps, seed
        entropy, positive = objective.auxiliary.entropy, objective.weights.positive_scale
        self._step = 0
        self._entropy = math.nan
        self._entropy_start: float | None = None
        self._coefficient = entropy.coefficient if entropy else 0.0
        self._scale = positive.scale if positive else 1.0
        self._raising = False
        self._resets = 0
        self._entropy_average: float | None = None
        self._controls: Controls | None = None
        self._loop: LoopState | None = None
        match objective.clip:
            case ClosedLoopClip() | ClosedLoopFlexEcClip() as clip:
                self._loop = LoopState(clip, total_steps=total_steps)
        self.averages = AdvantageAverages(objective)
        """What the step's advantages follow, before its entropy is known."""

    def begin_step(self, step: int, entropy: float) -> Controls:
        """Observe the step's entropy (nats per token) and set its numbers.

        Raises:
            ValueError: `step` is not the one after the last, or the entropy is not finite.
        """
        if step != self._step + 1:
            raise ValueError(
                f"controllers at step {step}, but the last step they saw is {self._step}; they see every step once: "
                "start at 1, or load the state that was saved with the run"
            )
        if not math.isfinite(entropy):
            raise ValueError(
                f"the entropy of step {step} is {entropy}; expected a number, from at least one response token"
            )
        self._step, self._entropy = step, entropy
        if self._entropy_start is None:
            self._entropy_start = entropy
        upper, lower = self._move_flexec(entropy)
        self._controls = Controls(
            step=step,
            seed=self._seed,
            upper=upper,
            lower=lower,
            entropy_coefficient=self._move_coefficient(entropy),
            positive_scale=self._move_scale(entropy),
            loop=self._loop.begin_step(step, entropy=entropy, entropy_start=self._start()) if self._loop else None,
            negative_scale=self._move_negative_scale(entropy),
            stare_acts=self._stare_acts(entropy),
        )
        return self._controls

    def end_update(self, loop: LoopChoice | None) -> Controls:
        """The numbers for the step's next update, after one for which a closed loop chose `loop` (None: there is no
        such loop). RuntimeError before the first step."""
        if self._controls is None:
            raise RuntimeError("no step has begun; begin_step comes first")
        if self._loop is not None and self._controls.loop is not None and loop is not None:
            knob = self._loop.end_update(loop)
            self._controls = replace(self._controls, loop=replace(self._controls.loop, knob=knob))
        return self._controls

    def foresee(self, step: int) -> Controls:
        """What `begin_step` will set for the next step, whose entropy is not known yet; RuntimeError where a number
        follows from it."""
        if self._objective.follows_entropy:
            raise RuntimeError("a number of the step follows from its entropy; measure it and call begin_step")
        return copy(self).begin_step(step, 0.0)

    def end_step(self, kl: float | None) -> bool:
        """Whether the reference is to be renewed after this step; `kl` is the step's mean estimate of the KL to it,
        None where the run has no reference. ValueError when a reset waits for a KL and there is no finite one."""
        config = self._objective.controllers.reference_reset
        due = config is not None and self._reset_due(config, kl)
        self._resets += due
        return due

    def metrics(self) -> Metrics:
        """The last step's numbers under `control/`, and its entropy, also relative to the start of the run."""
        if self._controls is None or self._entropy_start is None:
            return {}
        values = {"actor/old_entropy": self._entropy}
        if self._entropy_start > 0:
            values["actor/entropy_over_start"] = self._entropy / self._entropy_start
        if self._objective.auxiliary.entropy:
            values["control/entropy_coefficient"] = self._controls.entropy_coefficient
        if self._objective.weights.positive_scale:
            values["control/positive_scale"] = self._controls.positive_scale
        if self._objective.controllers.negative_scale:
            values["control/negative_scale"] = self._controls.negative_scale
        if self._objective.controllers.stare:
            values["control/stare_acts"] = float(self._controls.stare_acts)
        if isinstance(self._objective.clip, FlexEcClip):
            values["control/flexec_high_at_0.5"] = _at(self._controls.upper, _SHOWN_PROBABILITY)
            values["control/flexec_low_at_0.5"] = _at(self._controls.lower, _SHOWN_PROBABILITY)
            if self._objective.clip.schedule == "od":
                values["control/flexec_raising"] = float(self._raising)
        if (target := self._entropy_target()) is not None:
            values["control/entropy_target"] = target
        if self._loop is not None:
            values["control/loop_offset"] = self._loop.offset
        if self._objective.controllers.reference_reset:
            values["control/reference_resets"] = float(self._resets)
        return declared(values) | self.averages.metrics()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: everything the next step depends on beside the config."""
        averages = self.averages.state_dict()
        state = {
            "step": self._step,
            "entropy_start": self._entropy_start,
            "entropy_coefficient": self._coefficient,
            "raising": self._raising,
            "reference_resets": self._resets,
            **({"entropy_average": self._entropy_average} if self._objective.controllers.negative_scale else {}),
            **({"averages": averages} if averages else {}),
        }
        return state if self._loop is None else {**state, "loop": self._loop.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step that `state` was saved after. ValueError when it has other keys."""
        try:
            check_keys(state, self.state_dict(), what="controller")
        except ValueError as error:
            raise ValueError(
                f"{error}; a closed loop (objective.clip), controllers.negative_scale, focal advantages and "
                "shaping.group_entropy remember what a run has seen from its first step on, so a run that has begun "
                "keeps those that it has: for others begin another one from its weights (megarl convert, model.path)"
            ) from error
        start = state["entropy_start"]
        self._step = int(state["step"])
        self._entropy_start = None if start is None else float(start)
        self._coefficient = float(state["entropy_coefficient"])
        self._raising = bool(state["raising"])
        self._resets = int(state["reference_resets"])
        average = state.get("entropy_average")
        self._entropy_average = None if average is None else float(average)
        self.averages.load_state_dict(state.get("averages", {}))
        self._controls = None
        if self._loop is not None:
            self._loop.load_state_dict(state["loop"])

    def _move_flexec(self, entropy: float) -> tuple[Line, Line]:
        clip = self._objective.clip
        if not isinstance(clip, FlexEcClip):
            return (0.0, 0.0), (0.0, 0.0)
        steps_done = self._step - 1
        if clip.schedule == "od":
            self._raising = flexec_raises(
                clip,
                self._raising,
                entropy=entropy,
                entropy_start=self._start(),
                steps_done=steps_done,
                total_steps=self._total_steps,
            )
        return flexec_lines(clip, steps_done=steps_done, total_steps=self._total_steps, raising=self._raising)

    def _move_coefficient(self, entropy: float) -> float:
        """The coefficient that acts in this step."""
        controllers = self._objective.controllers
        if controllers.entropy_coefficient:
            self._coefficient = _skywork(controllers.entropy_coefficient, self._coefficient, entropy)
            # The bonus acts only while the entropy is too low, whatever the coefficient has grown to.
            return self._coefficient if entropy <= controllers.entropy_coefficient.target else 0.0
        if controllers.aer:
            self._coefficient = _aer_style(controllers.aer, self._coefficient, entropy, entropy_start=self._start())
        return self._coefficient

    def _move_scale(self, entropy: float) -> float:
        """The configured scale, less or more by a fixed step: the moves do not add up over steps."""
        config = self._objective.controllers.positive_scale
        if config is None or entropy == config.target:
            return self._scale
        return self._scale - config.step if entropy < config.target else self._scale + config.step

    def _move_negative_scale(self, entropy: float) -> float:
        """The configured scale over delta of FADE (arXiv 2607.01490)."""
        weight, config = self._objective.weights.negative_scale, self._objective.controllers.negative_scale
        scale = weight.scale if weight else 1.0
        if config is None:
            return scale
        average = entropy if self._entropy_average is None else self._entropy_average
        self._entropy_average = average + config.rate * (entropy - average)
        distance = self._entropy_average - config.target_ratio * self._start()
        return scale / min(max(1.0 + distance, config.smallest), 1.0)

    def _stare_acts(self, entropy: float) -> bool:
        """STARE's gate (arXiv 2606.19236): open while the entropy is below its target."""
        gate = self._objective.controllers.stare
        return gate is None or entropy < gate.target

    def _entropy_target(self) -> float | None:
        """What the configured controllers steer to; None without one, and where two do not agree."""
        controllers = self._objective.controllers
        targets = {
            section.target
            for section in (controllers.entropy_coefficient, controllers.positive_scale, controllers.stare)
            if section
        }
        for share in (controllers.aer, controllers.negative_scale):
            if share:
                targets.add(share.target_ratio * self._start())
        if self._loop is not None and self._loop.target is not None:
            targets.add(self._loop.target)
        return targets.pop() if len(targets) == 1 else None

    def _start(self) -> float:
        if self._entropy_start is None:
            raise RuntimeError("no entropy was observed yet; begin_step comes first")
        return self._entropy_start

    def _reset_due(self, config: ReferenceReset, kl: float | None) -> bool:
        if config.every_steps is not None and self._step % config.every_steps == 0:
            return True
        if config.kl_above is None:
            return False
        if kl is None or not math.isfinite(kl):
            raise ValueError(
                f"step {self._step}: objective.controllers.reference_reset.kl_above is {config.kl_above:g}, but the KL "
                f"to the reference that the step's updates report is {kl}; expected a number"
            )
        return kl > config.kl_above


def _skywork(config: AdaptiveEntropyCoefficient, coefficient: float, entropy: float) -> float:
    """Up by `step` at or below the target, down by it above, within the bounds (Skywork-OR1, TRL)."""
    moved = coefficient + config.step if entropy <= config.target else coefficient - config.step
    return min(max(moved, config.minimum), config.maximum)


def _aer_style(config: AerStyleCoefficient, coefficient: float, entropy: float, *, entropy_start: float) -> float:
    """A reconstruction of AER's global coefficient, see `AerStyleCoefficient`."""
    return max(0.0, coefficient + config.rate * (config.target_ratio * entropy_start - entropy))


def _at(line: Line, probability: float) -> float:
    return line[0] * probability + line[1]
