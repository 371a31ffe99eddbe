"""The prompt set of a run: problems rendered with the chat template and tokenised.

Prompts are made when they are read, the same each time; what every one of them must be is checked once, at load.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from megarl.config.data import DataConfig
from megarl.data.encoding import PromptEncoder
from megarl.data.problems import Problem, Problems, load_problems
from megarl.data.prompt_checks import PromptChecks
from megarl.records import Prompt

logger = logging.getLogger(__name__)
_BATCH_PROMPTS = 1024
_PROGRESS_EVERY_S = 10.0
T = TypeVar("T")


class PromptSet(Sequence[Prompt]):
    """The prompts of a data source that are kept, in its order. Build it with `load_prompts`."""

    def __init__(self, problems: Problems, encoder: PromptEncoder, kept: Sequence[int], *, about: str) -> None:
        """kept: positions in the data set, which are the prompts' `index`. about: a line on what was read."""
        self._problems, self._encoder, self._kept = problems, encoder, kept
        self.about = about

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        index %= len(self)
        return self._build(index, index + 1)[0]

    def __iter__(self) -> Iterator[Prompt]:
        for start in range(0, len(self), _BATCH_PROMPTS):
            yield from self._build(start, min(start + _BATCH_PROMPTS, len(self)))

    def answers(self) -> Iterator[tuple[int, str]]:
        """Every prompt's index and ground truth; the prompts are not rendered for it."""
        for start in range(0, len(self), _BATCH_PROMPTS):
            kept = self._kept[start : start + _BATCH_PROMPTS]
            yield from zip(kept, (problem.answer for problem in read_at(self._problems, kept)), strict=True)

    def place(self, index: int) -> str:
        """Where the problem of `index` comes from, for messages: file and row, or the task that made it."""
        return self._problems.place(index)

    def _build(self, start: int, stop: int) -> list[Prompt]:
        kept = self._kept[start:stop]
        problems = read_at(self._problems, kept)
        return [
            Prompt(
                index=index,
                text=encoded.text,
                token_ids=encoded.token_ids,
                answer=problem.answer,
                metadata=problem.metadata,
            )
            for index, problem, encoded in zip(kept, problems, self._encoder.encode(problems), strict=True)
        ]


def load_prompts(
    config: DataConfig, tokenizer: Any, *, max_prompt_tokens: int, embedding_rows: int | None = None
) -> PromptSet:
    """The prompts of `config.train`, each known to be readable and fit to be sampled from.

    embedding_rows: of the model, None: unknown. ConfigError: unknown task, missing file or column, an empty data set,
    no chat template, or what `PromptChecks` finds.
    """
    encoder = PromptEncoder(config, tokenizer, max_prompt_tokens=max_prompt_tokens)
    problems = load_problems(config.train)
    checks = PromptChecks(config, tokenizer, max_prompt_tokens=max_prompt_tokens, embedding_rows=embedding_rows)
    every = report_progress(encoder.encode_all(problems), len(problems), what="prompts checked")
    for index, (problem, encoded) in enumerate(every):
        checks.add(index, problem, encoded)
    kept = checks.finish(problems.place)
    return PromptSet(problems, encoder, kept, about=checks.describe())


def read_at(problems: Problems, indexes: Sequence[int]) -> list[Problem]:
    """The problems at ascending indexes, few of which are left out."""
    if not indexes:
        return []
    first = indexes[0]
    read = problems.read(first, indexes[-1] + 1)
    return [read[index - first] for index in indexes]


def report_progress(items: Iterable[T], total: int, *, what: str) -> Iterator[T]:
    """Pass items through, with a log line every ten seconds."""
    due = time.monotonic() + _PROGRESS_EVERY_S
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() > due:
            logger.info("%d of %d %s", count, total, what)
            due = time.monotonic() + _PROGRESS_EVERY_S
