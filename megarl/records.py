"""What crosses a boundary between layers: frozen records of plain values and numpy arrays, checked where they are made.

Numbers of a sample or of its response tokens are columns: fields that say their dtype, whether there is one per sample
or one per token, and what holds where a sample has none. What carries samples on (packing, token batches, the rollouts'
file) goes through `columns_of` and needs no edit for a new one. Arrays have the declared dtype whatever a record is
made from, and cross process borders without a copy where pickling keeps buffers out of band.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
StopReason = Literal["stop", "length"]
Failure = Literal["timeout", "crash"]
"""Why a verifier gave no number."""
TokenIds = NDArray[np.int32]
Floats = NDArray[np.float32]
_TOKEN_DTYPE = np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class Column:
    """A number of every sample, or of every response token of it."""

    name: str
    dtype: str
    """numpy's name of it."""
    per: Literal["sample", "token"]
    default: Any
    """Per sample: its value where none is given. Per token: None, and then no sample of a batch has any."""


def column(dtype: str, *, per: Literal["sample", "token"], **default: Any) -> Any:
    """Declare the field of a record as a column; `default=` where it may be left out."""
    return field(metadata={"dtype": dtype, "per": per}, **default)


def columns_of(record: type) -> tuple[Column, ...]:
    """The columns that a record's class declares, in their order."""
    declared: Any = record
    return _read_columns(declared)


@cache
def _read_columns(record: Any) -> tuple[Column, ...]:
    return tuple(
        Column(one.name, one.metadata["dtype"], one.metadata["per"], one.default)
        for one in fields(record)
        if "dtype" in one.metadata
    )


def as_tokens(tokens: Sequence[int] | TokenIds) -> TokenIds:
    """Token ids as an array, the same one where they are."""
    return np.asarray(tokens, dtype=np.int32)


def as_floats(values: Sequence[float] | Floats) -> Floats:
    """Numbers per token as an array, the same one where they are."""
    return np.asarray(values, dtype=np.float32)


def group_by_tokens(items: Iterable[T], count: Callable[[T], int], *, at_least: int) -> Iterator[list[T]]:
    """Neighbours together until they have `at_least` tokens, `count` of each; the last group has what is left."""
    group: list[T] = []
    num_tokens = 0
    for item in items:
        group.append(item)
        num_tokens += count(item)
        if num_tokens >= at_least:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


class ArrayRecord:
    """Equality of records with arrays: all fields are equal; a NaN is equal to nothing."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        pairs = [(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)]  # type: ignore[arg-type]
        return all(_same(own, theirs) for own, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]


def _same(own: Any, theirs: Any) -> bool:
    if isinstance(own, np.ndarray) or isinstance(theirs, np.ndarray):
        return own is not None and theirs is not None and np.array_equal(own, theirs)
    return bool(own == theirs)


def settle(record: Any, *, tokens: tuple[str, ...] = ()) -> None:
    """Give the named token fields and every column per token its dtype."""
    for name in tokens:
        _settle_field(record, name, _TOKEN_DTYPE)
    declared: Any = type(record)
    for name, dtype in _token_columns(declared):
        if getattr(record, name) is not None:
            _settle_field(record, name, dtype)


def _settle_field(record: Any, name: str, dtype: np.dtype[Any]) -> None:
    value = getattr(record, name)
    # Most are arrays of it already, and a step has hundreds of thousands.
    if type(value) is not np.ndarray or value.dtype != dtype:
        object.__setattr__(record, name, np.asarray(value, dtype=dtype))


@cache
def _token_columns(record: Any) -> tuple[tuple[str, np.dtype[Any]], ...]:
    return tuple((one.name, np.dtype(one.dtype)) for one in columns_of(record) if one.per == "token")


def check_lengths(record: Any, count: int, *, whose: str) -> None:
    """ValueError where a column per token has not `count` entries."""
    declared: Any = type(record)
    for name, _ in _token_columns(declared):
        value = getattr(record, name)
        if value is not None and value.shape != (count,):
            raise ValueError(f"{whose}: {count} response tokens but {value.size} entries in {name}")


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
class SamplingSettings:
    """How a response is sampled that is not trained on."""

    temperature: float
    top_p: float
    """The fewest most probable tokens with this probability together are sampled from."""
    max_tokens: int
    """At most those for which the engines are made, rollout.max_response_tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Ask an engine for one response."""

    prompt: tuple[int, ...]
    seed: int
    settings: SamplingSettings | None = None
    """None: as training samples, from all tokens, by rollout.temperature and max_response_tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout(ArrayRecord):
    """One sampled response."""

    prompt: TokenIds
    response: TokenIds
    """Sampled tokens, with the stop token, or the tokens of the stop string, when it stopped there."""
    behavior_logp: Floats = column("float32", per="token")
    """log p of each response token, temperature applied (and top-p, where `SamplingSettings` have it), under the
    weights that sampled it (`policy_version`)."""
    stop_reason: StopReason
    policy_version: int

    def __post_init__(self) -> None:
        settle(self, tokens=("prompt", "response"))
        if len(self.behavior_logp) != len(self.response):
            raise ValueError(
                f"{len(self.response)} response tokens but {len(self.behavior_logp)} log-probs; was "
                "SamplingParams(logprobs=0) passed to vLLM?"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRollouts:
    """Responses as they cross a process border together: an array of every kind for all of them.

    Each array of its own would be one more object to pickle, to make, and for the garbage collector to look at.
    """

    prompts: TokenIds
    """One after the other."""
    responses: TokenIds
    prompt_ends: NDArray[np.int64]
    """[rollouts]: where each ends."""
    response_ends: NDArray[np.int64]
    per_token: Mapping[str, NDArray[Any]]
    """The columns of the response tokens, by name."""
    stop_reasons: tuple[StopReason, ...]
    policy_versions: tuple[int, ...]

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> Self:
        """At least one."""
        return cls(
            prompts=np.concatenate([rollout.prompt for rollout in rollouts]),
            responses=np.concatenate([rollout.response for rollout in rollouts]),
            prompt_ends=np.cumsum([len(rollout.prompt) for rollout in rollouts]),
            response_ends=np.cumsum([len(rollout.response) for rollout in rollouts]),
            per_token={
                one.name: np.concatenate([getattr(rollout, one.name) for rollout in rollouts])
                for one in columns_of(Rollout)
            },
            stop_reasons=tuple(rollout.stop_reason for rollout in rollouts),
            policy_versions=tuple(rollout.policy_version for rollout in rollouts),
        )

    def unpack(self) -> list[Rollout]:
        """The responses, in order; their arrays are views."""
        prompts, responses = _spans(self.prompt_ends), _spans(self.response_ends)
        return [
            Rollout(
                prompt=self.prompts[prompt],
                response=self.responses[response],
                stop_reason=stop_reason,
                policy_version=policy_version,
                **{name: values[response] for name, values in self.per_token.items()},
            )
            for prompt, response, stop_reason, policy_version in zip(
                prompts, responses, self.stop_reasons, self.policy_versions, strict=True
            )
        ]


def _spans(ends: NDArray[np.int64]) -> list[slice]:
    return [slice(start, end) for start, end in pairwise((0, *ends.tolist()))]


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
    failure: Failure | None = None
    """Why the verifier gave nothing; None: it answered."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample(ArrayRecord):
    """One training sample: a response with its columns. Its tokens are prompt + response.

    The objective finds every column under its name in `TokenBatch.columns_T`.
    """

    prompt: TokenIds
    response: TokenIds
    behavior_logp: Floats | None = column("float32", per="token", default=None)
    """As in `Rollout`; None for supervised data, which nobody sampled."""
    advantage: float = column("float32", per="sample")
    correct: bool = column("bool", per="sample", default=False)
    """As `Score.correct`; False where the verifier knows neither."""
    expert_logp: Floats | None = column("float32", per="token", default=None)
    """Old policy's log-prob of the data set's answer at each position of the response, NaN past its end; None where no
    loss asks for it."""
    entropy_scale: float = column("float32", per="sample", default=1.0)
    """Factor of the entropy bonus on this response (AER-style)."""

    def __post_init__(self) -> None:
        settle(self, tokens=("prompt", "response"))

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores(ArrayRecord):
    """Log-probs of one sample's response under the trainer, before this batch's first update."""

    sample_id: int
    old_logp: Floats = column("float32", per="token")
    old_entropy: Floats = column("float32", per="token")
    """Exact entropy at each position, nats, under the same weights as `old_logp`."""
    ref_logp: Floats | None = column("float32", per="token", default=None)
    """Under the frozen reference; None when there is none."""

    def __post_init__(self) -> None:
        settle(self)
        check_lengths(self, len(self.old_logp), whose=f"sample {self.sample_id}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTrace(ArrayRecord):
    """What training did with one sample's response tokens: one entry per token in every column."""

    sample_id: int
    logp: Floats = column("float32", per="token")
    """Current policy, in the update that trained on the sample."""
    entropy: Floats = column("float32", per="token")
    expected_q: Floats = column("float32", per="token")
    """N = sum over the vocabulary of p^2 (log p + H), the mean of Q = p (log p + H), under the same weights."""
    ratio: Floats = column("float32", per="token")
    low: Floats = column("float32", per="token")
    """Lower bound of the ratio."""
    high: Floats = column("float32", per="token")
    """Upper bound; inf is off."""
    gate: Floats = column("float32", per="token")
    """g: gradient of the gate with respect to logp, sign turned."""
    weight: Floats = column("float32", per="token")
    """Product of the token weights, without the aggregation's."""
    coefficient: Floats = column("float32", per="token")
    """What multiplied grad log p in the update: of gate and weights, the aggregation's included."""
    advantage: Floats = column("float32", per="token")
    """After token shaping."""
    rule: NDArray[np.int32] = column("int32", per="token")
    """`rules.Rule` flags of those that acted."""

    def __post_init__(self) -> None:
        settle(self)
        check_lengths(self, len(self.logp), whose=f"trace of sample {self.sample_id}")
