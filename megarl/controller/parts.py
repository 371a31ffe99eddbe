"""What the loop is given: workers behind Protocols, data, and the state that goes on from step to step."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from megarl.controller.arrivals import Decode
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.engine_losses import EngineLosses
from megarl.controller.evaluating import Evaluator
from megarl.controller.protocols import PolicyGroup, Publisher, RolloutPool, Scorer
from megarl.controller.reporting import StepReporter
from megarl.controller.turns import OwnGpus, Turns
from megarl.data.sampler import PromptSampler
from megarl.data.sft import Pair
from megarl.data.stops import StopConditions
from megarl.objective.advantage import AdvantageHistory
from megarl.objective.controllers import ControllerState
from megarl.records import Prompt
from megarl.telemetry.state import StateOwner


class PublishingParts(Protocol):
    """What engines need that sample from published weights: the loop's, or those of an evaluation alone."""

    @property
    def policy(self) -> Publisher: ...
    @property
    def pool(self) -> RolloutPool: ...
    @property
    def connect(self) -> Callable[[], Awaitable[None]]: ...
    @property
    def reporter(self) -> StepReporter: ...
    @property
    def engine_losses(self) -> EngineLosses: ...
    @property
    def turns(self) -> Turns: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the loop works with; a `PublishingParts` too."""

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
    checkpoints: Checkpoints
    connect: Callable[[], Awaitable[None]]
    """Connects policy and engines for publications, anew where they were connected."""
    history: AdvantageHistory = field(default_factory=AdvantageHistory)
    experts: Sequence[Pair] | None = None
    """The data set's own answers, by prompt index; None where no loss asks for them."""
    stops: StopConditions = field(default_factory=StopConditions)
    """What ends a response, for messages."""
    engine_losses: EngineLosses = field(default_factory=EngineLosses)
    turns: Turns = field(default_factory=OwnGpus)
    """Who has the GPUs when."""
    evaluator: Evaluator | None = None
    """None where eval.every_steps is 0."""

    @property
    def owners(self) -> Mapping[str, StateOwner]:
        """Who remembers anything from one step to the next, by the names in `RunProgress`."""
        return {
            "sampler": self.sampler,
            "controllers": self.controllers,
            "history": self.history,
            "scorer": self.scorer,
            "reporter": self.reporter,
        }
