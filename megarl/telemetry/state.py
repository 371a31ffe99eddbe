"""The state of an object: what its owner has to be given back so that a run goes on exactly.

Who owns state has `state_dict` and `load_state_dict`. The driver's owners give plain JSON, a policy rank tensors too.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class StateOwner(Protocol):
    """An object whose state the next step depends on."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, beside what the configuration says. Later changes of the object do not change it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. ValueError, saying what was expected and found, where it is none of such an object."""


def check_keys(state: Mapping[str, Any], expected: Iterable[str], *, what: str) -> None:
    """ValueError where `state`, the state of `what`, has other keys than `expected`."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} state is {state!r}, expected keys {sorted(expected)}")
    if set(state) != set(expected):
        raise ValueError(f"{what} state has keys {sorted(state)}, expected {sorted(expected)}")
