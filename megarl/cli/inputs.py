"""What a run reads before a worker starts: the model's small files before the run directory is made, the data after,
because a large set takes minutes and says so. A file that cannot work is a ConfigError from here, never from a worker.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.data.chat import check_chat_template, reads_clock
from megarl.data.progress import Listener, report_progress
from megarl.data.prompt_checks import check_own_texts
from megarl.data.prompts import PromptSet, load_prompts
from megarl.data.sampler import PromptSampler
from megarl.data.sft import PairSet, load_pairs
from megarl.data.stops import StopConditions, load_stops, read_embedding_rows
from megarl.data.tokenizer import load_tokenizer
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.models.table import hf_tensors
from megarl.rewards.ground_truth import read_answers

_SHOWN_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What the checkpoint's small files say."""

    tokenizer: Any
    stops: StopConditions
    embedding_rows: int | None
    """None: config.json does not say."""
    date: str | None
    """data.date, or today where the chat template reads the clock; None: neither."""
    reads_clock: bool

    def pin(self, config: RunConfig) -> RunConfig:
        """The configuration with the day that the run's prompts show, as its directory keeps it."""
        return config.model_copy(update={"data": config.data.model_copy(update={"date": self.date})})

    def load_prompts(self, config: RunConfig, listen: Listener | None) -> PromptSet:
        """Those of data.train, for this model; what `data.prompts.load_prompts` says of them."""
        return load_prompts(
            config.data,
            self.tokenizer,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            embedding_rows=self.embedding_rows,
            listen=listen,
        )

    def describe(self) -> list[str]:
        """Lines for a person: what ends a response, and the day the prompts show."""
        date = self.describe_date()
        return [*(f"stops  {line}" for line in self.stops.describe()), *([f"date   {date}"] if date else [])]

    def describe_date(self) -> str | None:
        """The day that the prompts show, or that they do not although it is set."""
        if self.date is None:
            return None
        why = (
            "the chat template reads the clock, which stands at this day" if self.reads_clock else "no prompt shows it"
        )
        return f"{self.date} (data.date): {why}"


@dataclass(frozen=True, kw_only=True)
class TrainInputs:
    """The data of an RL run."""

    prompts: PromptSet
    sampler: PromptSampler
    experts: PairSet | None
    """The data set's answers, where the guided loss compares responses with them."""


def load_model_inputs(config: RunConfig) -> ModelInputs:
    """Tokenizer and stops; the weights are those that config.json describes (headers are read). Seconds at most."""
    check_weights(config.model.path)
    return load_text_inputs(config)


def load_text_inputs(config: RunConfig) -> ModelInputs:
    """Tokenizer, stops and the day of the prompts; the weights are not looked at."""
    path = config.model.path
    tokenizer = load_tokenizer(path)
    check_chat_template(config.data, tokenizer)
    check_own_texts(config.data, tokenizer)
    clock = reads_clock(config.data, tokenizer)
    date = config.data.date or (datetime.date.today().isoformat() if clock else None)
    data = config.data.model_copy(update={"date": date})
    return ModelInputs(
        tokenizer=tokenizer,
        stops=load_stops(path, tokenizer, data=data, rollout=config.rollout),
        embedding_rows=read_embedding_rows(path),
        date=date,
        reads_clock=clock,
    )


def load_train_inputs(config: RunConfig, model: ModelInputs, listen: Listener | None = None) -> TrainInputs:
    """Prompts, their order, and answers where a loss asks for them. Long on large sets: `listen` is told how far it
    is."""
    prompts = model.load_prompts(config, listen)
    prompts = check_answers(config, prompts, listen)
    sampler = PromptSampler(
        len(prompts),
        config.train.prompts_per_step,
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        digest=prompts.digest,
    )
    guided = config.objective.auxiliary.reads("expert")
    experts = load_sft_inputs(config, model, listen).by_prompt_index() if guided else None
    return TrainInputs(prompts=prompts, sampler=sampler, experts=experts)


def check_answers(config: RunConfig, prompts: PromptSet, listen: Listener | None = None) -> PromptSet:
    """The prompts whose ground truth the verifier can read; all of them, unless reward.unreadable_answers is "drop".

    ConfigError with every ground truth that it cannot read, by file and row; the first ones are named.
    """
    verifier = config.reward.verifier
    if not verifier.reads_ground_truth:
        return prompts
    indexes: dict[str, list[int]] = {}
    read = report_progress(prompts.answers(), len(prompts), what="ground truths read", listen=listen)
    for index, answer in read:
        indexes.setdefault(answer, []).append(index)
    answers = read_answers(config.reward, indexes)
    found = report_progress(answers, len(indexes), what="ground truths checked", listen=listen)
    bad = {index: problem for answer, problem in found if problem for index in indexes[answer]}
    if not bad:
        return prompts
    count = f'{len(bad)} of {len(prompts)} ground truths cannot be read by verifier "{verifier.kind}"'
    first = sorted(bad)[:_SHOWN_ROWS]
    if config.reward.unreadable_answers == "drop" and len(bad) < len(prompts):
        example = f"{prompts.place(first[0])}: {bad[first[0]]}"
        return prompts.without(bad.keys(), why=f"{count} and are left out, the first: {example}")
    action = 'correct the row, or leave such rows out with reward.unreadable_answers = "drop"'
    if len(bad) == len(prompts):
        action = "is the column the ground truth, and the verifier the data set's?"
    texts = [f"{prompts.place(index)}: {bad[index]}; {action}" for index in first]
    if len(bad) > _SHOWN_ROWS:
        texts.append(count)
    raise ConfigError("\n".join(texts), texts)


def load_sft_inputs(config: RunConfig, model: ModelInputs, listen: Listener | None = None) -> PairSet:
    """The data set's own answers, each of them fit to be trained on."""
    return load_pairs(
        config.data,
        model.tokenizer,
        stops=model.stops,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        embedding_rows=model.embedding_rows,
        listen=listen,
    )


def check_weights(path: str) -> None:
    """ConfigError when the checkpoint's weights are damaged or not those its config.json describes; reads headers."""
    try:
        with open_hf_checkpoint(path) as checkpoint:
            checkpoint.validate(hf_tensors(read_model_shape(Path(path))))
    except (CheckpointError, ModelError) as error:
        raise ConfigError(f"model.path: {error}") from error
