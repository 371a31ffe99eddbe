"""Where prompts come from and how they are shown to the model."""

import datetime
import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megarl.config.base import Config, raise_problems

LAYOUT_COLUMNS = {
    "gsm8k": ("question", "answer"),
    "dapo_math": ("prompt", "reward_model.ground_truth"),
    "prompt_answer": ("prompt", "answer"),
}
"""What each data layout reads; a dot goes into a struct."""


class ReasoningGymData(Config):
    """Problems made by reasoning-gym, offline."""

    source: Literal["reasoning_gym"] = "reasoning_gym"
    task: str
    """Task name, e.g. "chain_sum"; `reasoning_gym.factory.DATASETS` lists them."""
    size: int = Field(10_000, ge=1)
    """Number of generated problems."""
    seed: int = 0
    """Seed of the generator."""
    options: dict[str, Any] = {}
    """The task's own options, e.g. {min_terms = 2, max_digits = 1}."""


class FileData(Config):
    """Problems from files, or from a data set on the Hugging Face hub."""

    source: Literal["file"]
    path: str | list[str]
    """A file (.jsonl, .json, .csv, .tsv or .parquet; each also .gz, .bz2 or .zst), a directory of them, a pattern such
    as "parts/**/*.parquet", a list of these, or a hub name such as "openai/gsm8k"."""
    layout: Literal["gsm8k", "dapo_math", "prompt_answer"]
    """gsm8k: question, answer with "#### n". dapo_math: prompt (messages), reward_model.ground_truth.
    prompt_answer: prompt (text or messages), answer."""
    columns: dict[str, str] = {}
    """Where the layout's columns are in the file, if under other names: {prompt = "problem", answer = "extra.value"},
    where a dot goes into a struct. Columns that are not used become the prompt's metadata."""
    duplicates: Literal["keep", "collapse"] = "keep"
    """Rows that state the same problem (equal messages): keep, each row is drawn once an epoch; collapse: each problem
    once, where it first appears."""
    different_answers: Literal["error", "drop"] = "error"
    """A problem whose rows have different answers, under duplicates = "collapse": an error, or left out."""
    subset: str | None = None
    """Hub configuration, e.g. "main" of openai/gsm8k; the directory of that name in a local copy."""
    split: str = "train"
    """Split of a hub data set, or of a directory whose files or directories are named after splits."""

    def sources(self) -> dict[str, str]:
        """The file's column by the layout's."""
        return {name: self.columns.get(name, name) for name in LAYOUT_COLUMNS[self.layout]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        return raise_problems(self, (_check_paths, _check_columns))


def _check_paths(data: FileData) -> Iterator[str]:
    if not data.path or not all([data.path] if isinstance(data.path, str) else data.path):
        yield f"data.train.path: expected a path or a list of paths, found {data.path!r}"


def _check_columns(data: FileData) -> Iterator[str]:
    known = LAYOUT_COLUMNS[data.layout]
    for name in data.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            yield (
                f'data.train.columns: "{name}" is no column of layout "{data.layout}", which has '
                f"{', '.join(known)} (the layout's name is on the left, the file's on the right){hint}"
            )


def iso_date(value: Any) -> Any:
    """A TOML date as text; text must be a date of the calendar. Anything else is left to the field's type."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    return datetime.date.fromisoformat(value).isoformat() if isinstance(value, str) else value


class DataConfig(Config):
    """Prompts and how they are shown to the model."""

    train: Annotated[ReasoningGymData | FileData, Field(discriminator="source")]
    system_prompt: str | None = None
    """Put before every conversation."""
    instruction: str | None = None
    """Appended to the user's message, e.g. 'Put the final answer in \\boxed{}.' (double quotes need two
    backslashes)."""
    chat_template: bool = True
    """Wrap the prompt in the tokenizer's chat template, which alone writes special tokens then; false feeds the bare
    text after the tokenizer's own beginning-of-sequence token, where it has one."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the chat template, e.g. {enable_thinking = false}; one that the template does not read is an
    error."""
    date: Annotated[Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None, BeforeValidator(iso_date)] = None
    """The day (YYYY-MM-DD) that a chat template sees which reads the clock, such as Llama 3.2's; default: the day on
    which the run starts, written into its config.toml."""
    control_tokens: Literal["error", "allow"] = "error"
    """Control tokens of the tokenizer (<|im_end|>, </s>) spelled out in the text of a problem, a system prompt, an
    instruction or a solution. error: found before the run starts; allow: the model reads them as control tokens."""
    overlong_prompts: Literal["error", "drop", "truncate"] = "error"
    """A prompt longer than rollout.max_prompt_tokens. error: at start; drop: left out, and counted; truncate: the last
    user message loses its beginning, so that its end, the instruction and the chat template stay whole."""
    shuffle: bool = True
    """A new order every epoch, from train.seed; false keeps the data set's order."""

    @model_validator(mode="after")
    def _check_template_variables(self) -> Self:
        return raise_problems(self, (_find_reserved_variables,))


_RESERVED_VARIABLES = {
    "strftime_now": "set data.date instead",
    "chat_template": "write the template into the checkpoint's chat_template.jinja instead",
    **dict.fromkeys(
        ("add_generation_prompt", "continue_final_message", "conversation", "messages", "tokenize", "tokenizer_kwargs"),
        "megarl sets it itself",
    ),
    **dict.fromkeys(
        ("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        "it is no variable of a template",
    ),
}
"""Arguments of transformers' apply_chat_template that are not the user's, and why."""


def _find_reserved_variables(data: DataConfig) -> Iterator[str]:
    for name in data.chat_template_kwargs:
        if name in _RESERVED_VARIABLES:
            yield f"data.chat_template_kwargs.{name} cannot be set: {_RESERVED_VARIABLES[name]}"
    if data.chat_template_kwargs and not data.chat_template:
        yield "data.chat_template_kwargs are read by the chat template, but data.chat_template is false; remove one"
