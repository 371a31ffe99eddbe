"""What the reader of a page holds, gathered from the rollouts of one run or of several that are read side by side."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from megarl.report.reader_choice import (
    Candidate,
    choose_steps,
    evenly,
    order_candidates,
    read_prompts,
    scan,
    share_a_prompt,
    steps_that_share,
)
from megarl.report.reader_payload import PayloadBuilder
from megarl.report.reader_scales import Scales
from megarl.telemetry.rollouts import RolloutRow, read_rollouts

MAX_BYTES = 6_000_000
"""Of the payload: a page with it can still be mailed."""
_SEARCHED = 128
"""Files of a run in which prompts are looked for that other runs have."""
MAX_TOKENS = 200_000
"""Of all responses that are read to fill it; at about 50 bytes a token more than it holds."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUpdates:
    """How a step's responses are divided among its updates."""

    count: int
    mini_batch_responses: int

    def index(self, sample_id: int) -> int:
        """Which update of the step trained the response, from 1."""
        return sample_id // self.mini_batch_responses + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """A run whose tokens are to be read."""

    name: str
    rollouts: Path
    """The folder of its step-000012.parquet."""
    shown_folder: str = "rollouts"
    """How the page calls it: relative to itself."""
    updates: StepUpdates | None = None
    """None where the run's configuration is not known; then the page names no update."""

    def files(self) -> dict[int, Path]:
        """By step, ascending."""
        found = {path: re.fullmatch(r"step-(\d+)\.parquet", path.name) for path in self.rollouts.glob("*.parquet")}
        return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


@dataclass(slots=True, kw_only=True)
class ReaderContent:
    """The payload and what the page says of it."""

    payload: dict[str, Any]
    num_bytes: int
    num_shown: int
    num_chosen: int
    """That the rule lets in, whether they fit or not."""
    num_responses: int
    """Of all files of all runs."""
    steps: list[tuple[int, int]]
    """(files that were looked through, files there are) of every run."""
    sharing: bool = False
    """Whether the steps are those with prompts that runs share, and not the first, the last and evenly between."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be read."""


def read_content(sources: Sequence[TokenSource], *, max_bytes: int = MAX_BYTES) -> ReaderContent:
    """Choose by the rule of `reader_choice` and read until the payload is full. Damaged files are left out, named."""
    problems: dict[Path, str] = {}
    files = [source.files() for source in sources]
    with_files = [run for run, found in enumerate(files) if found]
    steps = dict(zip(with_files, choose_steps([list(files[run]) for run in with_files]), strict=True))
    candidates = _scan(files, steps, problems)
    sharing = _steps_that_share(files, problems) if len(with_files) > 1 and not share_a_prompt(candidates) else {}
    if sharing:
        steps |= sharing
        candidates = _scan(files, steps, problems)
    builder, scales = PayloadBuilder(max_bytes=max_bytes), Scales()
    chosen_by_rule = order_candidates(candidates)
    for one, row in _rows(_within(chosen_by_rule), files, problems):
        updates = sources[one.run].updates
        update = updates.index(row.sample_id) if updates else None
        if builder.add(row, run=one.run, update=update):
            scales.add(row)
    names = [{"name": source.name, "updates": source.updates.count if source.updates else None} for source in sources]
    payload = builder.build(names, scales.reach())
    return ReaderContent(
        payload=payload,
        num_bytes=builder.num_bytes,
        num_shown=len(payload["responses"]),
        num_chosen=len(chosen_by_rule),
        num_responses=sum(_num_rows(path) for found in files for path in found.values() if path not in problems),
        steps=[(len(steps.get(run, ())), len(found)) for run, found in enumerate(files)],
        sharing=bool(sharing),
        problems=list(problems.values()),
    )


def _scan(
    files: Sequence[dict[int, Path]], steps: Mapping[int, Sequence[int]], problems: dict[Path, str]
) -> list[Candidate]:
    return [
        one
        for run, chosen in steps.items()
        for step in chosen
        for one in _tolerate(files[run][step], problems, partial(scan, files[run][step], run=run, step=step))
    ]


def _steps_that_share(files: Sequence[dict[int, Path]], problems: dict[Path, str]) -> dict[int, list[int]]:
    """By run, of those that share a prompt with another."""
    searched = [evenly(list(found), _SEARCHED) for found in files]
    prompts = [
        {step: _tolerate(found[step], problems, partial(read_prompts, found[step])) for step in steps}
        for found, steps in zip(files, searched, strict=True)
    ]
    return {run: steps for run, steps in enumerate(steps_that_share(prompts)) if steps}


def _within(ordered: Sequence[Candidate]) -> list[Candidate]:
    """The first with `MAX_TOKENS` tokens together, and the very first in any case."""
    total = 0
    for count, one in enumerate(ordered):
        total += one.num_tokens
        if total > MAX_TOKENS:
            return list(ordered[: max(count, 1)])
    return list(ordered)


def _rows(
    ordered: Sequence[Candidate], files: Sequence[dict[int, Path]], problems: dict[Path, str]
) -> Iterator[tuple[Candidate, RolloutRow]]:
    """The rows in this order; every file is read once."""
    wanted: dict[Path, list[int]] = defaultdict(list)
    for one in ordered:
        wanted[files[one.run][one.step]].append(one.sample_id)
    rows: dict[tuple[Path, int], RolloutRow] = {}
    for path, sample_ids in wanted.items():
        for row in _tolerate(path, problems, partial(read_rollouts, path, sample_ids=sample_ids)):
            rows[path, row.sample_id] = row
    for one in ordered:
        found = rows.get((files[one.run][one.step], one.sample_id))
        if found is not None:
            yield one, found


def _tolerate(path: Path, problems: dict[Path, str], read: Callable[[], Iterable[T]]) -> list[T]:
    try:
        return list(read())
    except (ValueError, OSError) as error:
        text = str(error)
        problems[path] = text if path.name in text else f"{path.name} cannot be read: {text}"
        return []


def _num_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowInvalid, OSError):
        return 0
