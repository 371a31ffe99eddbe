"""Who says when everything is looked at for garbage."""

import gc
import weakref

from megarl.telemetry.garbage import ManualCollection


def test_everything_is_collected_when_it_is_told_and_as_before_afterwards() -> None:
    class Node:
        pass

    full = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            full.append(info)

    def work() -> tuple[int, int]:
        with ManualCollection() as garbage:
            assert gc.get_freeze_count() > 0
            node = Node()
            node.itself = node
            gone = weakref.ref(node)
            del node
            full.clear()
            kept = [[] for _ in range(600_000)]
            by_themselves = len(full)
            garbage.collect()
            assert kept
            assert gone() is None
            return by_themselves, len(full)

    before = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        assert work() == (0, 1)
    finally:
        gc.callbacks.remove(note)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
