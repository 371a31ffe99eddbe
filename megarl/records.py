"""What crosses a boundary between layers: frozen, plain types, checked where they are made."""

from dataclasses import dataclass, field
from typing import Any, Literal

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem, tokenised as the model will see it."""

    index: int
    """Position in the data set."""
    problem: str = ""
    """What rows that state the same problem share: a digest of its messages. "": known by its index alone."""
    text: str
    """The rendered prompt, chat template included."""
    token_ids: tuple[int, ...]
    answer: str
    """Ground truth as the verifier reads it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the verifier needs besides; JSON-able (reasoning-gym's entry, a data source name)."""

    @property
    def identity(self) -> str:
        """Under which name a history remembers it."""
        return self.problem or str(self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Ask an engine for one response."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    """Sampled tokens, with the stop token, or the tokens of the stop string, when it stopped there."""
    behavior_logp: tuple[float, ...]
    """log p of each response token, temperature applied, under the weights that sampled it (`policy_version`)."""
    stop_reason: StopReason
    policy_version: int

    def __post_init__(self) -> None:
        if len(self.behavior_logp) != len(self.response):
            raise ValueError(
                f"{len(self.response)} response tokens but {len(self.behavior_logp)} log-probs; was "
                "SamplingParams(logprobs=0) passed to vLLM?"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the reward of one response was made of."""

    reward: float
    """verifier (where cut off: reward.truncated_factor of its lead over a wrong answer) + overlong penalty + bonus:
    what the advantage sees."""
    verifier: float
    """As the verifier gave it; what a wrong answer gets, where it gave nothing (`failure`)."""
    correct: bool | None = False
    """The verifier's number is reward.correct_from or more; None: it knows neither right nor wrong (random draws)."""
    overlong: float = 0.0
    bonus: float = 0.0
    """objective.shaping.perplexity's."""
    failure: Literal["timeout", "crash"] | None = None
    """Why the verifier gave nothing; None: it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sample: a response with its advantage. Its tokens are prompt + response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    """As in `Rollout`; empty for supervised data, which nobody sampled."""
    advantage: float
    correct: bool = False
    """As `Score.correct`; False where the verifier knows neither."""
    expert_logp: tuple[float, ...] = ()
    """Old policy's log-prob of the data set's answer at each position of the response, NaN past its end; empty where
    no loss asks for it."""
    entropy_scale: float = 1.0
    """Factor of the entropy bonus on this response (AER-style)."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Log-probs of one sample's response under the trainer, before this batch's first update."""

    sample_id: int
    old_logp: tuple[float, ...]
    old_entropy: tuple[float, ...]
    """Exact entropy at each position, nats, under the same weights as `old_logp`."""
    ref_logp: tuple[float, ...] | None = None
    """Under the frozen reference; None when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """What training did with one sample's response tokens: one entry per token in every column."""

    sample_id: int
    logp: tuple[float, ...]
    """Current policy, in the update that trained on the sample."""
    entropy: tuple[float, ...]
    expected_q: tuple[float, ...]
    """N = sum over the vocabulary of p^2 (log p + H), the mean of Q = p (log p + H), under the same weights."""
    ratio: tuple[float, ...]
    low: tuple[float, ...]
    """Lower bound of the ratio."""
    high: tuple[float, ...]
    """Upper bound; inf is off."""
    gate: tuple[float, ...]
    """g: gradient of the gate with respect to logp, sign turned."""
    weight: tuple[float, ...]
    """Product of the token weights, without the aggregation's."""
    coefficient: tuple[float, ...]
    """What multiplied grad log p in the update: of gate and weights, the aggregation's included."""
    advantage: tuple[float, ...]
    """After token shaping."""
    rule: tuple[str, ...]
    """Rules that acted, e.g. "clip_high+tis"; "" is none."""
