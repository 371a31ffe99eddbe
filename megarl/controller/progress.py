"""How far a run is: the state of all that the driver drives, in one object.

The policy ranks own the rest, tensors (`MegatronWorker.state_dict`). With both, and the same configuration and data, a
run goes on as if it had not stopped; nothing else is remembered from one step to the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from megarl.telemetry.state import StateOwner, check_keys

FORMAT = 1
"""Of `RunProgress.state_dict`; a state of another is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """A run after `step`; without arguments, one that begins."""

    step: int = 0
    """Steps that are finished."""
    policy_version: int = 0
    """Of the weights after them."""
    owners: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By name, what each owner's `state_dict` said; JSON-able."""

    @classmethod
    def collect(cls, owners: Mapping[str, StateOwner], *, step: int, policy_version: int) -> Self:
        """The states as they are now."""
        states = {name: owner.state_dict() for name, owner in owners.items()}
        return cls(step=step, policy_version=policy_version, owners=states)

    def restore(self, owners: Mapping[str, StateOwner], *, steps: int) -> None:
        """Give every owner its state, in a run of `steps` steps.

        Raises:
            ValueError: more steps are finished than the run has, there are other owners, or one refuses its state.
        """
        if self.step > steps:
            raise ValueError(
                f"the run to go on with has finished step {self.step}, this one ends after step {steps}; raise the "
                "number of steps, or go on from an earlier state"
            )
        check_keys(self.owners, owners, what="run")
        for name, owner in owners.items():
            owner.load_state_dict(self.owners[name])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; `from_state` makes the same progress of it."""
        return {
            "format": FORMAT,
            "step": self.step,
            "policy_version": self.policy_version,
            "owners": dict(self.owners),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `state_dict` told. ValueError, with what was expected and found, where it did not."""
        check_keys(state, cls().state_dict(), what="progress")
        if state["format"] != FORMAT:
            raise ValueError(
                f"progress state has format {state['format']!r}, this version of megarl reads {FORMAT}; go on with the "
                "version that wrote it"
            )
        for name in ("step", "policy_version"):
            if type(state[name]) is not int or state[name] < 0:
                raise ValueError(f"progress state has {name} {state[name]!r}, expected a number from 0")
        if not isinstance(state["owners"], Mapping):
            raise ValueError(f"progress state has owners {state['owners']!r}, expected a state for each by its name")
        return cls(step=state["step"], policy_version=state["policy_version"], owners=dict(state["owners"]))
