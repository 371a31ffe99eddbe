"""What a run reads before a worker starts: the model's small files before the run directory is made, the data after,
because a large set takes minutes and says so. A file that cannot work is a ConfigError from here, never from a worker.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.data.prompts import PromptSet, load_prompts
from megarl.data.sampler import PromptSampler
from megarl.data.sft import PairSet, load_pairs
from megarl.data.tokenizer import load_stop_token_ids, load_tokenizer
from megarl.models.shape import ModelError, read_model_shape
from megarl.models.table import hf_tensors


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What the checkpoint's small files say."""

    tokenizer: Any
    stop_token_ids: tuple[int, ...]


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
    tokenizer = load_tokenizer(config.model.path)
    return ModelInputs(tokenizer=tokenizer, stop_token_ids=load_stop_token_ids(config.model.path, tokenizer))


def load_train_inputs(config: RunConfig, model: ModelInputs) -> TrainInputs:
    """Prompts, their order, and answers where a loss asks for them. Long on large sets."""
    prompts = load_prompts(config.data, model.tokenizer, max_prompt_tokens=config.rollout.max_prompt_tokens)
    sampler = PromptSampler(
        len(prompts), config.train.prompts_per_step, seed=config.train.seed, shuffle=config.data.shuffle
    )
    experts = None if config.objective.auxiliary.guided is None else load_sft_inputs(config, model)
    return TrainInputs(prompts=prompts, sampler=sampler, experts=experts)


def load_sft_inputs(config: RunConfig, model: ModelInputs) -> PairSet:
    """The data set's own answers, each of them fit to be trained on."""
    return load_pairs(
        config.data,
        model.tokenizer,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
    )


def check_weights(path: str) -> None:
    """ConfigError when the checkpoint's weights are damaged or not those its config.json describes; reads headers."""
    try:
        with open_hf_checkpoint(path) as checkpoint:
            checkpoint.validate(hf_tensors(read_model_shape(Path(path))))
    except (CheckpointError, ModelError) as error:
        raise ConfigError(f"model.path: {error}") from error
