"""Phases of many processes in a line, and of each in a table."""

from megarl.telemetry.heartbeat import ProcessBeat
from megarl.telemetry.phases import describe_phases, phase_table


def beat(role: str, rank: int, phase: str, for_s: float, *, pid: int | None = 7) -> ProcessBeat:
    node = "" if pid is None else f"n{rank % 2}"
    return ProcessBeat(role=role, rank=rank, node=node, pid=pid, phase=phase, for_s=for_s, silent_s=2.4, step=12)


PROCESSES = [
    beat("controller", 0, "update", 612.4),
    *(beat("policy", rank, "make an update", 600.0 + rank) for rank in (0, 1, 2, 5)),
    beat("policy", 3, "idle", 3.0),
    beat("rollout", 0, "start", 1.0, pid=None),
]


def test_processes_of_a_role_with_one_phase_are_told_together() -> None:
    assert describe_phases(PROCESSES) == (
        "controller 0: update for 612 s; policy 0 to 2, 5: make an update for 605 s; policy 3: idle for 3 s; "
        "rollout 0: start for 1 s"
    )


def test_a_table_has_a_line_for_each() -> None:
    assert phase_table([PROCESSES[0], PROCESSES[1], PROCESSES[-1]]) == [
        "process       node  pid  step  for s  silent s  phase",
        "controller-0  n0      7    12    612         2  update",
        "policy-0      n0      7    12    600         2  make an update",
        "rollout-0     ?       ?    12      1         2  start",
    ]
