"""Pairs for the supervised warm start: the same prompts as RL, answered by the data set itself.

Prompt and response are tokenised apart, as in RL, so the model sees the same boundary at both; a response ends as a
sampled one does.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

from megarl.config.data import DataConfig
from megarl.data.answer_end import AnswerEncoder
from megarl.data.encoding import PromptEncoder
from megarl.data.problems import Problems, load_problems
from megarl.data.progress import Listener, report_progress
from megarl.data.prompt_checks import PromptChecks
from megarl.data.stops import StopConditions, build_answer_encoder

Pair = tuple[tuple[int, ...], tuple[int, ...]]
_BATCH_PAIRS = 1024


class PairSet(Sequence[Pair]):
    """(prompt token ids, response token ids with the end of the turn) of the problems that are kept; made when read."""

    def __init__(
        self, problems: Problems, prompts: PromptEncoder, answers: AnswerEncoder, kept: Sequence[int], *, about: str
    ) -> None:
        """kept: positions in the data set. about: a line on what was read."""
        self._problems, self._prompts, self._answers, self._kept = problems, prompts, answers, kept
        self.about = about

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        return self._build(index, index + 1)[0]

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self), _BATCH_PAIRS):
            yield from self._build(start, min(start + _BATCH_PAIRS, len(self)))

    def by_prompt_index(self) -> "PairSet":
        """The same pairs by their problem's position in the data set (`Prompt.index`), the others in between."""
        every = range(len(self._problems))
        return PairSet(self._problems, self._prompts, self._answers, every, about=self.about)

    def _build(self, start: int, stop: int) -> list[Pair]:
        problems = self._problems.take(self._kept[start:stop])
        prompts = self._prompts.encode(problems)
        responses = self._answers.encode([problem.solution for problem in problems])
        return [(prompt.token_ids, response) for prompt, response in zip(prompts, responses, strict=True)]


def load_pairs(
    config: DataConfig,
    tokenizer: Any,
    *,
    stops: StopConditions,
    max_prompt_tokens: int,
    max_response_tokens: int,
    embedding_rows: int | None = None,
    listen: Listener | None = None,
) -> PairSet:
    """Supervised pairs of `config.train`, each checked to fit both limits (the end of the turn counted).

    Responses: reasoning-gym's answer, GSM8K's worked answer, prompt_answer's answer, DAPO-Math's ground truth (that set
    has no solutions). ConfigError as in `load_prompts`, and for answers that are empty, too long or hold control
    tokens.
    """
    prompts = PromptEncoder(config, tokenizer, max_prompt_tokens=max_prompt_tokens)
    answers = build_answer_encoder(stops, tokenizer)
    problems = load_problems(config.train, listen=listen)
    checks = PromptChecks(config, tokenizer, max_prompt_tokens=max_prompt_tokens, embedding_rows=embedding_rows)
    encoded = prompts.encode_all(problems, range(len(problems)))
    every = report_progress(encoded, len(problems), what="pairs checked", listen=listen)
    for index, (problem, prompt) in enumerate(every):
        if not checks.add(index, problem, prompt):
            continue
        (response,) = answers.encode([problem.solution])
        checks.check_text(index, problem.solution, "the answer")
        checks.check_ids(index, response, f"the answer of pair {index}")
        if not problem.solution.strip():
            checks.findings.add(
                "{count} of {total} answers are empty, and a supervised example needs at least one token; remove them",
                index,
                f"the answer of pair {index} is empty",
            )
        if len(response) > max_response_tokens:
            checks.findings.add(
                "{count} of {total} answers are too long; raise the limit or remove the pairs",
                index,
                f"the answer of pair {index} has {len(response)} tokens, rollout.max_response_tokens is "
                f"{max_response_tokens}",
            )
    kept = checks.finish(problems.place)
    return PairSet(problems, prompts, answers, kept, about="; ".join(filter(None, (checks.describe(), problems.about))))
