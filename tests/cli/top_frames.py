"""Frames that several tests of `megarl top` draw."""

from typing import Any

from megarl.cli.top_frame import Curve, RunFrame, ShownProcess
from megarl.telemetry.heartbeat import ProcessBeat
from megarl.telemetry.log_warnings import LoggedWarning


def make_beat(role: str = "policy", rank: int = 0, **values: Any) -> ProcessBeat:
    given: dict[str, Any] = {"node": "n1", "pid": 100 + rank, "phase": "idle", "for_s": 1.0, "silent_s": 2.0, "step": 3}
    return ProcessBeat(role=role, rank=rank, **(given | values))


def make_curve(label: str, *values: float, decimals: int = 3) -> Curve:
    return Curve(label=label, points=tuple(enumerate(values, start=1)), last=values[-1], decimals=decimals)


def make_run(label: str = "clip-higher", **values: Any) -> RunFrame:
    """A run in the middle of its 300 steps, with everything a screen has room for."""
    driver = make_beat("controller", phase="update")
    policy = [make_beat("policy", rank, phase="make an update") for rank in range(4)]
    processes = [driver, *policy, make_beat("rollout")]
    given: dict[str, Any] = {
        "standing": "running",
        "step": 120,
        "steps": 300,
        "step_s": 12.5,
        "left_s": 2250.0,
        "tokens_per_s": 51234.0,
        "curves": tuple(
            make_curve(name, 0.1, 0.2, 0.4)
            for name in ("reward", "entropy", "clip low %", "clip high %", "response", "grad norm")
        ),
        "phases": (
            ("generate", 6.0),
            ("reward", 0.5),
            ("update", 4.0),
            ("publish", 1.0),
            ("other", 0.1),
            ("eval", 0.9),
        ),
        "beat_age_s": 2.0,
        "processes": tuple(ShownProcess(beat=beat) for beat in processes),
        "warnings": tuple(
            LoggedWarning("2026-11-29", f"10:00:{number:02}", ("rollout-0",), "WARNING", f"warning {number}")
            for number in range(9)
        ),
        "checkpoint": "step 100, 4 min ago",
    }
    return RunFrame(label=label, **(given | values))
