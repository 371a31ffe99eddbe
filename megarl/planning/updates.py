"""An optimizer update before it is made: how samples fill micro-batches, and how long pipeline stages idle."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megarl.config.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """One optimizer update on a data-parallel rank, where all responses have one length."""

    responses: str
    """"longest", or "half as long" with prompts as long as they may be."""
    tokens: int
    """Of a packed sample."""
    samples: int
    micro_batches: int
    bubble: float
    """Share of the time that a pipeline rank idles: (p - 1) / (m + p - 1) of 1F1B with p stages and m micro-batches
    (arXiv 2104.04473, section 2.2, as a share of the whole)."""


def longest_sequence(config: RunConfig) -> int:
    """Tokens of the longest prompt with the longest response."""
    return config.rollout.max_prompt_tokens + config.rollout.max_response_tokens


def longest_stream(config: RunConfig) -> int:
    """Tokens of the longest sample in a packed micro-batch; its last token is only predicted."""
    return longest_sequence(config) - 1


def count_micro_batches(config: RunConfig, stream: int) -> int:
    """Micro-batches per data-parallel rank and update where every sample's stream has this length
    (`plan_micro_batches` deals equal samples so)."""
    samples = config.train.mini_batch_responses // config.parallel.data
    return math.ceil(samples / max(1, config.policy.tokens_per_micro_batch // stream))


def plan_updates(config: RunConfig) -> Iterator[Updates]:
    """With the longest responses, and with responses half as long."""
    stages = config.parallel.pipeline
    half = config.rollout.max_prompt_tokens + max(1, config.rollout.max_response_tokens // 2) - 1
    for name, stream in (("longest", longest_stream(config)), ("half as long", half)):
        count = count_micro_batches(config, stream)
        yield Updates(
            responses=name,
            tokens=stream,
            samples=config.train.mini_batch_responses // config.parallel.data,
            micro_batches=count,
            bubble=(stages - 1) / (count + stages - 1),
        )
