"""How a response becomes a number: who verifies it, what counts as correct, what length and failures cost."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, assert_never

from pydantic import Field

from megarl.config.base import Config
from megarl.config.facts import MayChange, Variant


class VerifierVariant(Variant):
    """Who gives an answer its number, and what it says of itself."""

    @property
    @abstractmethod
    def looks_at_answer(self) -> bool:
        """Whether the number depends on the answer, so that it can tell right from wrong."""

    @property
    @abstractmethod
    def always_equal(self) -> bool:
        """Whether every response gets the same number."""

    @property
    @abstractmethod
    def reads_ground_truth(self) -> bool:
        """Whether it must be able to read the ground truth's text, which is checked before the run."""

    @property
    @abstractmethod
    def only_source(self) -> str | None:
        """The only data.train.source whose problems it can score; None: any."""


class AnswerReward(Config):
    """What the verifiers share that look for an answer in the response.

    Text inside `<think>` (also thinking, thought, reasoning, [THINK]) is no answer, nor is what follows a `<think>`
    that is never closed, whether the response or the prompt's last words opened it.
    """

    answer_pattern: str | None = None
    """Regular expression whose last match's first group is the answer, e.g. "<answer>(.*?)</answer>"; a response
    without a match is wrong. Default: the verifier looks for the answer in the whole response."""


class MathVerifyReward(AnswerReward, VerifierVariant):
    r"""1 when math-verify finds the answer equal to the ground truth, else 0.

    The answer is the last \boxed{}, else what the last "answer is ..." or "#### ..." says, else the last expression.
    What is accepted and refused beyond math-verify is the table in megarl/rewards/math_rules.py.
    """

    kind: Literal["math_verify"]
    looks_at_answer: ClassVar[bool] = True
    always_equal: ClassVar[bool] = False
    reads_ground_truth: ClassVar[bool] = True
    only_source: ClassVar[str | None] = None


class Gsm8kReward(AnswerReward, VerifierVariant):
    r"""1 when the last number of the answer equals the ground truth, else 0.

    The answer is the last \boxed{}, else what the last "answer is ..." or "#### ..." says, else the whole response.
    """

    kind: Literal["gsm8k"]
    looks_at_answer: ClassVar[bool] = True
    always_equal: ClassVar[bool] = False
    reads_ground_truth: ClassVar[bool] = True
    only_source: ClassVar[str | None] = None


class ReasoningGymReward(AnswerReward, VerifierVariant):
    """The task's own scorer, in [0, 1]; the response, or what answer_pattern finds in it, is the answer.

    Many tasks give a wrong answer something (0.01 to 0.05 for trying): it is in the reward, and it is not correct.
    """

    kind: Literal["reasoning_gym"]
    looks_at_answer: ClassVar[bool] = True
    always_equal: ClassVar[bool] = False
    reads_ground_truth: ClassVar[bool] = False
    only_source: ClassVar[str | None] = "reasoning_gym"


class RandomReward(VerifierVariant):
    """A draw that does not look at the answer, seeded per sample (arXiv 2509.26114's control)."""

    kind: Literal["random"]
    looks_at_answer: ClassVar[bool] = False
    reads_ground_truth: ClassVar[bool] = False
    only_source: ClassVar[str | None] = None
    distribution: Literal["bernoulli", "uniform", "gaussian"] = "bernoulli"
    """What is drawn: 1 with probability p, a number in [0, 1), or a normal with mean and std."""
    p: float = Field(0.5, ge=0, le=1)
    """Bernoulli: probability of 1."""
    mean: float = 0.0
    """Gaussian: its mean."""
    std: float = Field(1.0, ge=0)
    """Gaussian: its standard deviation."""

    @property
    def always_equal(self) -> bool:
        match self.distribution:
            case "bernoulli":
                return self.p in (0, 1)
            case "uniform":
                return False
            case "gaussian":
                return self.std == 0
        assert_never(self.distribution)


class FunctionReward(AnswerReward, VerifierVariant):
    """A user's function, called in worker processes.

    It returns a number, a bool or a dict with such a `score`. It is tried at start on the first problems, with an empty
    response and with the ground truth as the response; None and NaN end the run there. With answer_pattern it is given
    what the pattern finds ("" without a match) instead of the response.
    """

    kind: Literal["function"]
    looks_at_answer: ClassVar[bool] = True
    always_equal: ClassVar[bool] = False
    reads_ground_truth: ClassVar[bool] = False
    only_source: ClassVar[str | None] = None
    path: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`."""
    signature: Literal["megarl", "verl", "trl", "trl_messages"] = "megarl"
    """How it is called. megarl: f(prompt: Prompt, response: str). verl: f(data_source, solution_str, ground_truth,
    extra_info), as verl's compute_score. trl: f(prompts, completions, **columns) -> list, every argument a list of one;
    columns are `answer`, `ground_truth` and `solution` (the ground truth) and the data set's own. trl_messages: the
    same, prompt and completion as lists of messages."""
    environment: list[str] = []
    """Environment variables that the function needs. It sees none but these and what any program needs (PATH, HOME,
    PYTHON*, LANG, *_NUM_THREADS, ...): the trainer's tokens and keys are not handed on."""


Verifier = Annotated[
    MathVerifyReward | Gsm8kReward | ReasoningGymReward | RandomReward | FunctionReward, Field(discriminator="kind")
]


class OverlongConfig(Config):
    """DAPO's soft penalty (arXiv 2503.14476, eq. 13): 0 up to max - cache tokens, then linear to -factor at max."""

    cache_tokens: int | None = Field(None, ge=1)
    """Length of the linear part, the last tokens before the maximum; default: a fifth of the maximum (DAPO: 4096 of
    20480)."""
    factor: float = Field(1.0, ge=0)
    """Size of the penalty at the maximum length."""

    def cache_of(self, max_response_tokens: int) -> int:
        """Tokens of the linear part."""
        return self.cache_tokens if self.cache_tokens is not None else max(1, max_response_tokens // 5)


class RewardConfig(Config):
    """How a response becomes a number."""

    verifier: Verifier
    correct_from: float | None = Field(None, allow_inf_nan=False)
    """Verifier's number from which on a response is correct, for dynamic sampling, AER, CalibRL and CDE's bonus.
    Default: the verifier's maximum, 1 (for a function too; set it where yours gives a right answer another number).
    Uniform and gaussian draws have no correct answers unless this is set: dynamic sampling then looks at the numbers
    themselves, AER at their mean within [0, 1]."""
    wrong: float | None = Field(None, allow_inf_nan=False)
    """What a wrong answer gets from the verifier, and so a time-out or a crash. Default: 0, for a function what it
    gives an empty response at start. Where a response to the same prompt got less, it is that: failing never pays
    more than answering wrong."""
    overlong: OverlongConfig | None = None
    """Penalty on long responses; absent: none. Its maximum length is rollout.max_response_tokens."""
    unreadable_answers: Literal["error", "drop"] = "error"
    """Problems whose ground truth the verifier cannot read. error: at start; drop: left out, and counted."""
    truncated_factor: float = Field(1.0, ge=0, le=1)
    """What a response cut off at the limit keeps of its lead over a wrong answer (ProRLv2's stop-properly penalty:
    0)."""
    timeout_s: Annotated[float, MayChange()] = Field(10.0, gt=0)
    """Time limit of one answer; over it the answer is wrong and reward/timeouts counts it."""
    workers: Annotated[int, MayChange()] = Field(2, ge=1)
    """Processes that score answers."""
    spare_workers: Annotated[int, MayChange()] = Field(30, ge=0)
    """Processes that may run besides while answers take more than a tenth of timeout_s: those that hang are waited for
    side by side. 0 keeps to `workers`, for functions whose answers rightly take long and need the machine."""
    memory_gib: Annotated[float, MayChange()] = Field(4.0, gt=0)
    """Memory that a scoring process may take beyond what it needs to start; an answer that wants more is a crash."""
