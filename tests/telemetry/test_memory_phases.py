"""What a process uses becomes what its phases used, and the largest of all processes is logged."""

from megarl.telemetry.memory_phases import GIB, MemoryPhases, MemoryUse, memory_metrics
from megarl.telemetry.metrics import Max, Min, to_values


def use(peak: int, end: int) -> MemoryUse:
    return MemoryUse(peak=peak, end=end)


def test_what_was_used_is_of_the_phase_that_ends() -> None:
    phases = MemoryPhases()
    phases.turn("generate", use(99, 99))  # before any
    phases.turn(None, use(5, 4))
    phases.turn("update", use(50, 50))  # between two
    phases.turn("publish", use(9, 6))
    assert phases.report() == {"generate": use(5, 4), "update": use(9, 6)}, "what has not ended is not told"


def test_stretches_of_a_phase_are_one() -> None:
    """The most of both, the end of the later."""
    phases = MemoryPhases()
    for stretch in (use(9, 6), use(7, 3)):
        phases.turn("publish", use(1, 1))
        phases.turn(None, stretch)
    assert phases.report() == {"publish": use(9, 3)}
    assert use(9, 6).with_later(MemoryUse(end=2)) == use(9, 2)


def test_a_step_ends_when_the_next_begins_not_when_it_is_told() -> None:
    """A publication that is repeated tells the whole step again."""
    phases = MemoryPhases()
    phases.turn("update", use(0, 0))
    phases.turn("publish", use(9, 9))
    phases.begin_step()  # of a step that has begun
    assert set(phases.report()) == {"update"}
    phases.turn("generate", use(8, 8))
    assert set(phases.report()) == {"update", "publish"}
    phases.begin_step()
    phases.begin_step()
    phases.turn("update", use(7, 7))
    assert phases.report() == {"generate": use(7, 7)}


def test_the_largest_of_all_processes_is_logged() -> None:
    metrics = memory_metrics(
        "policy",
        [
            {"update": MemoryUse(peak=3 * GIB, end=GIB, tensors=2 * GIB, gpu_peak=5 * GIB, gpu_total=80 * GIB)},
            {"update": MemoryUse(peak=2 * GIB, end=2 * GIB, gpu_total=40 * GIB)},
        ],
    )
    assert metrics["memory/policy_update_max_gib"] == Max(3.0)
    assert metrics["memory/gpu_gib"] == Min(40.0)
    assert to_values(metrics) == {
        "memory/policy_update_max_gib": 3.0,
        "memory/policy_update_end_gib": 2.0,
        "memory/policy_update_tensors_max_gib": 2.0,
        "memory/policy_update_gpu_max_gib": 5.0,
        "memory/gpu_gib": 40.0,
    }
    assert memory_metrics("engine", [{}]) == memory_metrics("engine", []) == {}
    assert memory_metrics("engine", [{"sleep": MemoryUse()}]) == {}
