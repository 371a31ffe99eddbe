"""What the loop is given: workers behind Protocols, data, and the state that goes on from step to step."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megarl.controller.arrivals import Decode
from megarl.controller.protocols import PolicyGroup, RolloutPool, Scorer
from megarl.controller.reporting import StepReporter
from megarl.data.sampler import PromptSampler
from megarl.data.sft import Pair
from megarl.data.stops import StopConditions
from megarl.objective.advantage import AdvantageHistory
from megarl.objective.controllers import ControllerState
from megarl.records import Prompt


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the loop works with."""

    policy: PolicyGroup
    pool: RolloutPool
    scorer: Scorer
    prompts: Sequence[Prompt]
    sampler: PromptSampler
    decode: Decode
    """Responses to texts, special tokens left out; called in a thread."""
    token_text: Callable[[int], str]
    """The text of one token alone, a special token's name included."""
    reporter: StepReporter
    controllers: ControllerState
    connect: Callable[[], Awaitable[None]]
    """Connects policy and engines for publications, anew where they were connected."""
    history: AdvantageHistory = field(default_factory=AdvantageHistory)
    experts: Sequence[Pair] | None = None
    """The data set's own answers, by prompt index; None where no loss asks for them."""
    stops: StopConditions = field(default_factory=StopConditions)
    """What ends a response, for messages."""

    def controller_state(self) -> dict[str, Any]:
        """JSON-able, for state.json: what the next step's numbers and advantages depend on."""
        return {"objective": self.controllers.state_dict(), "advantage": self.history.state_dict()}

    def load_controller_state(self, state: dict[str, Any]) -> None:
        """Go on from `controller_state`. ValueError when it has other keys."""
        if set(state) != {"objective", "advantage"}:
            raise ValueError(f"controller state has keys {sorted(state)}, expected ['advantage', 'objective']")
        self.controllers.load_state_dict(state["objective"])
        self.history.load_state_dict(state["advantage"])
