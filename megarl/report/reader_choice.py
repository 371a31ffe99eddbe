"""Which responses the reader in a page holds: few enough for a page that can be mailed, by a rule that the page states.

Of every run up to `MAX_STEPS` steps: the first, the last and evenly between, of those that all runs have; where these
have no prompt in common that others of several runs have, as with another order of the data, those others. Of a step up
to `MAX_PROMPTS` prompts: those that most runs and most of these steps have, then those in which rules acted on most
tokens. Of a prompt up to `MAX_SAMPLES` responses: traced ones first, then those in which rules acted on most tokens.
They are taken in turn: the first response of every prompt and step, then the second.

A prompt is known again, in another step or run, by its text as the model saw it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megarl.telemetry.rollouts import iterate_batches

MAX_STEPS = 12
MAX_PROMPTS = 12
MAX_SAMPLES = 8
_FILES_READ = 48
"""Of all runs together, from five runs on: with many runs fewer steps of each."""

_COLUMNS = ("sample_id", "sample_index", "prompt_text", "rule", "response_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One response of a file that was looked through."""

    run: int
    """Position among the runs of the page."""
    step: int
    sample_id: int
    sample_index: int
    prompt: bytes
    """Digest of the prompt's text."""
    num_tokens: int
    traced: bool
    num_ruled: int
    """Tokens that any rule acted on."""


def choose_steps(steps_by_run: Sequence[Sequence[int]]) -> list[list[int]]:
    """The steps of each run whose files are looked through, ascending; `steps_by_run` likewise, of all its files.

    Where all runs have a step in common only common ones count, so that like is compared with like.
    """
    common = sorted(set.intersection(*map(set, steps_by_run))) if steps_by_run else []
    count = _steps_of_each(len(steps_by_run))
    return [evenly(common or list(steps), count) for steps in steps_by_run]


def _steps_of_each(num_runs: int) -> int:
    return min(MAX_STEPS, max(2, _FILES_READ // max(num_runs, 1)))


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """So many of the steps: the first, the last and evenly between."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index)] for index in np.linspace(0, len(steps) - 1, count)]


def steps_that_share(prompts_by_run: Sequence[Mapping[int, Collection[bytes]]]) -> list[list[int]]:
    """Steps of each run, ascending, with prompts that other runs have too: those first that most runs have, each in the
    last step of a run that has it. `prompts_by_run`: by step. All lists are empty where no two runs share any."""
    runs: dict[bytes, dict[int, int]] = defaultdict(dict)
    for run, prompts_by_step in enumerate(prompts_by_run):
        for step in sorted(prompts_by_step):
            for prompt in prompts_by_step[step]:
                runs[prompt][run] = step
    count = _steps_of_each(len(prompts_by_run))
    chosen: list[set[int]] = [set() for _ in prompts_by_run]
    for steps in sorted((steps for steps in runs.values() if len(steps) > 1), key=lambda steps: -len(steps)):
        if all(step in chosen[run] or len(chosen[run]) < count for run, step in steps.items()):
            for run, step in steps.items():
                chosen[run].add(step)
    return [sorted(steps) for steps in chosen]


def read_prompts(path: Path) -> set[bytes]:
    """Digests of a file's prompts. Raises as `scan`."""
    texts = {text for batch in iterate_batches(path, ["prompt_text"]) for text in batch["prompt_text"].to_pylist()}
    return set(map(prompt_digest, texts))


def share_a_prompt(candidates: Sequence[Candidate]) -> bool:
    """Whether any prompt is in several runs."""
    runs: dict[bytes, int] = {}
    return any(runs.setdefault(one.prompt, one.run) != one.run for one in candidates)


def scan(path: Path, *, run: int, step: int) -> list[Candidate]:
    """All responses of a file that have tokens, in its order.

    Raises:
        ValueError: the file has other columns than `rollouts.SCHEMA`, or is no parquet file.
        OSError: it cannot be read.
    """
    found: list[Candidate] = []
    for batch in iterate_batches(path, _COLUMNS):
        lengths = pc.list_value_length(batch["response_tokens"]).to_pylist()
        ruled = _ruled_tokens(batch["rule"])
        keys = batch.select(["sample_id", "sample_index", "prompt_text"]).to_pylist()
        traced = pc.is_valid(batch["rule"]).to_pylist()
        for index, key in enumerate(keys):
            if lengths[index]:
                prompt = prompt_digest(key.pop("prompt_text"))
                found.append(
                    Candidate(
                        **key,
                        run=run,
                        step=step,
                        prompt=prompt,
                        num_tokens=lengths[index],
                        traced=traced[index],
                        num_ruled=int(ruled[index]),
                    )
                )
    return found


def _ruled_tokens(rules: pa.ListArray) -> np.ndarray:
    """How many tokens of each row some rule acted on; 0 for rows without a trace."""
    flat = rules.flatten()
    acted = np.array([bool(name) for name in flat.dictionary.to_pylist()], dtype=float)
    codes = flat.indices.to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(rules).to_numpy(zero_copy_only=False)
    return np.bincount(rows, weights=acted[codes] if len(codes) else None, minlength=len(rules))


def prompt_digest(text: str) -> bytes:
    """What tells prompts apart."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def order_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that the rule lets in, in the order in which they are taken until the page is full."""
    prompts = _prompt_ranks(candidates)
    by_file: dict[tuple[int, int], dict[bytes, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for one in candidates:
        by_file[one.step, one.run][one.prompt].append(one)
    turns: list[tuple[int, int, int, int, Candidate]] = []
    for (step, run), by_prompt in by_file.items():
        chosen = sorted(by_prompt, key=prompts.__getitem__)[:MAX_PROMPTS]
        for rank, prompt in enumerate(chosen):
            turns += [(turn, rank, step, run, one) for turn, one in enumerate(_best_samples(by_prompt[prompt]))]
    return [one for *_, one in sorted(turns, key=lambda turn: turn[:4])]


def _prompt_ranks(candidates: Sequence[Candidate]) -> dict[bytes, int]:
    """Position of every prompt in the order in which a step's are taken; the same in every run and step."""
    runs, files = defaultdict(set), defaultdict(set)
    ruled: Counter[bytes] = Counter()
    for one in candidates:
        runs[one.prompt].add(one.run)
        files[one.prompt].add((one.run, one.step))
        ruled[one.prompt] += one.num_ruled
    # Sorting is stable: prompts that are equal in all of it stay in the order in which they were sampled.
    order = sorted(runs, key=lambda prompt: (-len(runs[prompt]), -len(files[prompt]), -ruled[prompt]))
    return {prompt: rank for rank, prompt in enumerate(order)}


def _best_samples(samples: Sequence[Candidate]) -> Iterator[Candidate]:
    yield from sorted(samples, key=lambda one: (not one.traced, -one.num_ruled, one.sample_id))[:MAX_SAMPLES]
