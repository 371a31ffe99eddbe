"""The data set's own answers beside the sampled ones, for the guided loss: their log-probs under the old policy.

The log-probs are set beside a response position by position: token t of the response gets that of token t of the
answer, whatever the two tokens are. That is how CalibRL defines its expert.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_for_scoring
from megarl.controller.mismatch import NonFiniteLogpError
from megarl.controller.protocols import PolicyGroup
from megarl.data.sft import Pair
from megarl.records import Floats, Prompt, Sample, as_tokens


async def add_expert_logps(
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    *,
    experts: Sequence[Pair],
    policy: PolicyGroup,
    config: RunConfig,
) -> list[Sample]:
    """The samples with `expert_logp`, by one scoring call for the step's distinct prompts.

    `prompts` has one entry per sample. NonFiniteLogpError when an answer's log-probs are not finite: a NaN would read
    as "past the answer's end".
    """
    logps = await score_experts(prompts, experts=experts, policy=policy, config=config)
    return [
        replace(sample, expert_logp=align(logps[prompt.index], len(sample.response)))
        for sample, prompt in zip(samples, prompts, strict=True)
    ]


async def score_experts(
    prompts: Sequence[Prompt], *, experts: Sequence[Pair], policy: PolicyGroup, config: RunConfig
) -> dict[int, Floats]:
    """Log-prob of each token of the data set's answer under the current weights, by prompt index."""
    distinct = list({prompt.index: prompt for prompt in prompts}.values())
    answers = [_expert_sample(prompt, experts) for prompt in distinct]
    shards = await asyncio.to_thread(shard_for_scoring, answers, config)
    scored = {scores.sample_id: scores for scores in await policy.score(shards, hold=False)}
    logps = {prompt.index: scored[number].old_logp for number, prompt in enumerate(distinct)}
    bad = [index for index, values in logps.items() if not np.isfinite(values).all()]
    if bad:
        raise NonFiniteLogpError(
            f"the trainer's log-probs of the data set's answers to prompts {bad[:8]} are not finite. No weight was "
            "changed in this step; look at the learning rate and gradient norm of the steps before"
        )
    return logps


def align(expert_logp: Floats, length: int) -> Floats:
    """The first `length` entries; NaN past the answer's end."""
    aligned = np.full(length, np.nan, dtype=np.float32)
    aligned[: len(expert_logp)] = expert_logp[:length]
    return aligned


def _expert_sample(prompt: Prompt, experts: Sequence[Pair]) -> Sample:
    tokens, answer = experts[prompt.index]
    if tokens != prompt.token_ids:
        raise ValueError(
            f"the data set's answer {prompt.index} belongs to another prompt ({len(tokens)} tokens) than the one that "
            f"was sampled ({len(prompt.token_ids)} tokens); load prompts and answers from one data set"
        )
    return Sample(prompt=as_tokens(tokens), response=as_tokens(answer), advantage=0.0)
