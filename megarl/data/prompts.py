"""The prompt set of a run: problems rendered with the chat template and tokenised.

Prompts are made when they are read, the same each time; what every one of them must be is checked once, at load.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

import numpy as np

from megarl.config.data import DataConfig
from megarl.data.duplicates import problem_key
from megarl.data.encoding import PromptEncoder
from megarl.data.problems import Problems, load_problems
from megarl.data.progress import Listener, report_progress
from megarl.data.prompt_checks import PromptChecks
from megarl.records import Prompt

_BATCH_PROMPTS = 1024
_DIGEST_BYTES = 8


class PromptSet(Sequence[Prompt]):
    """The prompts of a data source that are kept, in its order. Build it with `load_prompts`."""

    def __init__(
        self, problems: Problems, encoder: PromptEncoder, kept: Sequence[int], *, about: str, digest: str = ""
    ) -> None:
        """kept: positions in the data set, which are the prompts' `index`. about: a line on what was read. digest: the
        same for the same problems, answers and tokens, and for no others."""
        self._problems, self._encoder, self._kept = problems, encoder, kept
        self.about, self.digest = about, digest

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return self._build(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        return self._build([index % len(self)])[0]

    def __iter__(self) -> Iterator[Prompt]:
        for start in range(0, len(self), _BATCH_PROMPTS):
            yield from self._build(range(start, min(start + _BATCH_PROMPTS, len(self))))

    def answers(self) -> Iterator[tuple[int, str]]:
        """Every prompt's index and ground truth; the prompts are not rendered for it."""
        for start in range(0, len(self), _BATCH_PROMPTS):
            kept = self._kept[start : start + _BATCH_PROMPTS]
            yield from zip(kept, (problem.answer for problem in self._problems.take(kept)), strict=True)

    def without(self, indexes: Collection[int], *, why: str) -> "PromptSet":
        """These prompts but those of `indexes`; `why` goes into the line on what was read."""
        kept = [index for index in self._kept if index not in indexes]
        return PromptSet(self._problems, self._encoder, kept, about=f"{self.about}; {why}", digest=self.digest)

    def place(self, index: int) -> str:
        """Where the problem of `index` comes from, for messages: file and row, or the task that made it."""
        return self._problems.place(index)

    def _build(self, positions: Sequence[int]) -> list[Prompt]:
        kept = [self._kept[position] for position in positions]
        problems = self._problems.take(kept)
        return [
            Prompt(
                index=index,
                problem=problem_key(problem.messages).hex(),
                text=encoded.text,
                token_ids=encoded.token_ids,
                answer=problem.answer,
                metadata=problem.metadata,
            )
            for index, problem, encoded in zip(kept, problems, self._encoder.encode(problems), strict=True)
        ]


def load_prompts(
    config: DataConfig,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    embedding_rows: int | None = None,
    listen: Listener | None = None,
) -> PromptSet:
    """The prompts of `config.train`, each known to be readable and fit to be sampled from.

    Of rows that state the same problem one is rendered and checked. embedding_rows: of the model, None: unknown.
    `listen` is told how far it is. ConfigError: unknown task, missing file or column, an empty data set, no chat
    template, or what `PromptChecks` finds.
    """
    encoder = PromptEncoder(config, tokenizer, max_prompt_tokens=max_prompt_tokens)
    problems = load_problems(config.train, listen=listen)
    checks = PromptChecks(config, tokenizer, max_prompt_tokens=max_prompt_tokens, embedding_rows=embedding_rows)
    firsts = np.unique(problems.first_of).tolist()
    every = report_progress(encoder.encode_all(problems, firsts), len(firsts), what="prompts checked", listen=listen)
    digest = hashlib.blake2b(np.asarray(problems.first_of, dtype=np.int64).tobytes(), digest_size=_DIGEST_BYTES)
    for index, (problem, encoded) in zip(firsts, every, strict=True):
        checks.add(index, problem, encoded)
        digest.update(np.asarray(encoded.token_ids, dtype=np.int32).tobytes())
        texts = [problem.answer]
        if problem.solution != problem.answer:
            texts.append(problem.solution)  # what a guided loss learns from
        for text in texts:
            digest.update(text.encode(errors="surrogatepass") + b"\0")
    kept = np.flatnonzero(np.isin(problems.first_of, checks.finish(problems.place))).tolist()
    about = "; ".join(filter(None, (checks.describe(), problems.about)))
    return PromptSet(problems, encoder, kept, about=about, digest=digest.hexdigest())
