"""Fixtures of the tests of the runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from megarl.runtime import workers
from tests.runtime.simulated_engines import Engine, Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    """Makes a pool of these engines, and of `later` ones in the place of those that are lost."""

    def make(*first: Engine, later: Sequence[Engine] = (), **rollout: Any) -> Stage:
        return Stage(monkeypatch, first, later, **rollout)

    monkeypatch.setattr(workers, "STACKS_WAIT_S", 0.2)
    return make
