"""The phases of a run's processes, for a person."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from megarl.telemetry.heartbeat import ProcessBeat


def describe_phases(processes: Iterable[ProcessBeat]) -> str:
    """In one line, processes of a role with the same phase together: `policy 0 to 3: make an update for 612 s`."""
    together: dict[tuple[str, str], list[ProcessBeat]] = {}
    for beat in processes:
        together.setdefault((beat.role, beat.phase), []).append(beat)
    return "; ".join(
        f"{role} {describe_ranks([beat.rank for beat in beats])}: {phase} for {max(beat.for_s for beat in beats):.0f} s"
        for (role, phase), beats in together.items()
    )


def phase_table(processes: Sequence[ProcessBeat]) -> list[str]:
    """One line for each process, after a header."""
    rows = [
        ("process", "node", "pid", "step", "for s", "silent s", "phase"),
        *(
            (
                f"{beat.role}-{beat.rank}",
                beat.node or "?",
                "?" if beat.pid is None else str(beat.pid),
                str(beat.step),
                f"{beat.for_s:.0f}",
                f"{beat.silent_s:.0f}",
                beat.phase,
            )
            for beat in processes
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at in (0, 1, len(row) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def describe_ranks(ranks: Iterable[int]) -> str:
    """Stretches of ascending numbers: "0 to 3, 7"."""
    stretches = [
        [rank for _, rank in stretch]
        for _, stretch in groupby(enumerate(sorted(ranks)), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{stretch[0]} to {stretch[-1]}" if len(stretch) > 1 else f"{stretch[0]}" for stretch in stretches)
