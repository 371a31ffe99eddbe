"""Numbers that depend on the step alone, and FlexEC's switch. Pure.

`steps_done` counts finished training steps: 0 in the first step of a run, total_steps - 1 in the last, so a schedule's
value at total_steps is where it ends, not a step that is trained. A line is (slope, start): start + slope * p.
"""

from fractions import Fraction
from typing import assert_never

from megarl.config.advantage import PerplexityBonus
from megarl.config.trust import FlexEcClip

Line = tuple[float, float]
"""(slope, start) of a distance from 1 that is linear in the token's probability."""


def flexec_lines(clip: FlexEcClip, *, steps_done: int, total_steps: int, raising: bool) -> tuple[Line, Line]:
    """FlexEC's high(p) and low(p) in one step (arXiv 2602.09782; constants and OD's thresholds from secondary sources).

    With H and M the dynamic upper and lower line and e the standard distance, phase 1 up to phase_split of the steps:
    id: high falls from H to e, low is e; then high is e, low goes from M to e. did: high rises from e to H, low is e;
    then high is H, low goes from M to e. So `low` jumps from e to M between the phases, as published. od: (H, e) while
    `raising`, else (e, M); only od reads it. upper, lower, both: (H, e), (e, M), (H, M) throughout.

    The paper's lambda = 1 - 2 k / T is that of phase_split 0.5: it falls from 1 to 0 in phase 1 and to -1 in phase 2.

    Raises:
        ValueError: steps_done is not in 0 .. total_steps.
    """
    if not 0 <= steps_done <= total_steps or total_steps < 1:
        raise ValueError(f"steps_done {steps_done} is not between 0 and total_steps {total_steps}")
    upper = (clip.upper_slope, clip.upper_start)
    lower = (clip.lower_slope, clip.lower_start)
    standard = (0.0, clip.standard)
    match clip.schedule:
        case "upper":
            return upper, standard
        case "lower":
            return standard, lower
        case "both":
            return upper, lower
        case "od":
            return (upper, standard) if raising else (standard, lower)
        case "id":
            first, done = _phase(clip, steps_done=steps_done, total_steps=total_steps)
            closing, opening = mix_lines(upper, standard, done), mix_lines(lower, standard, done)
            return (closing, standard) if first else (standard, opening)
        case "did":
            first, done = _phase(clip, steps_done=steps_done, total_steps=total_steps)
            return (mix_lines(standard, upper, done), standard) if first else (upper, mix_lines(lower, standard, done))
    assert_never(clip.schedule)


def flexec_thresholds(
    clip: FlexEcClip, *, entropy_start: float, steps_done: int, total_steps: int
) -> tuple[float, float]:
    """OD's lower and upper entropy threshold: floor_ratio H_start, and a line from H_start down to it."""
    floor = clip.floor_ratio * entropy_start
    return floor, floor + (entropy_start - floor) * (1.0 - steps_done / total_steps)


def flexec_raises(
    clip: FlexEcClip, raising: bool, *, entropy: float, entropy_start: float, steps_done: int, total_steps: int
) -> bool:
    """OD's hysteresis: raise once the entropy is at or below the floor, lower once it is above the upper threshold,
    else go on as before. A run starts lowering: its entropy is then the upper threshold itself."""
    floor, ceiling = flexec_thresholds(
        clip, entropy_start=entropy_start, steps_done=steps_done, total_steps=total_steps
    )
    if entropy <= floor:
        return True
    return raising and entropy <= ceiling


def perplexity_omega(bonus: PerplexityBonus, *, step: int) -> float:
    """CDE's weight of the bonus in `step` (from 1): a staircase, omega decay_factor^floor(steps done / decay_every)."""
    return bonus.omega * float(bonus.decay_factor ** ((step - 1) // bonus.decay_every_steps))


def decimal(number: float) -> Fraction:
    """The number as it was written: 0.7 is 7/10, so 0.7 * 10 is 7 and not above it."""
    return Fraction(repr(number))


def _phase(clip: FlexEcClip, *, steps_done: int, total_steps: int) -> tuple[bool, float]:
    """Whether this is phase 1, and how much of the phase is done, 0 to 1."""
    split = decimal(clip.phase_split) * total_steps
    if steps_done <= split:
        return True, float(steps_done / split)
    return False, float((steps_done - split) / (total_steps - split))


def mix_lines(before: Line, after: Line, progress: float) -> Line:
    """The line between both; exactly `before` at 0 and `after` at 1."""
    return mix(before[0], after[0], progress), mix(before[1], after[1], progress)


def mix(before: float, after: float, progress: float) -> float:
    """The number between both; exactly `before` at 0 and `after` at 1, and either where they are equal, inf too."""
    return before if before == after else (1.0 - progress) * before + progress * after
