"""Responses of a running engine, with the log-probs under which they were sampled.

Invariants: all tokens of a rollout were sampled under one version, for the caller holds back new weights meanwhile, and
vLLM's own record of the version is compared per rollout; `behavior_logp` is the log-prob after temperature.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from megarl.config.rollout import RolloutConfig
from megarl.records import Rollout, SampleRequest, StopReason, as_floats, as_tokens
from megarl.rollout.arguments import build_sampling_params
from megarl.rollout.failures import EngineError, WrongVersionError
from megarl.rollout.vllm_versions import sampled_versions, weights_label

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Arrived = Callable[[int, Rollout], None]
"""Told, on the event loop, which request has been answered, by its position, and how."""

_NOT_TRAINED_ON = "evaluation"

_STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "length"}


class Sampler:
    """Asks one engine for responses; numbers its requests, which vLLM knows by name."""

    def __init__(self, config: RolloutConfig, *, name: str, stop_token_ids: tuple[int, ...]) -> None:
        """name: the engine, for messages."""
        self._config, self._name, self._stop_token_ids = config, name, stop_token_ids
        self._num_requests = 0

    def check_prompts(self, requests: Sequence[SampleRequest]) -> None:
        """ValueError for a prompt that is empty or longer than rollout.max_prompt_tokens, or a response that may be
        longer than rollout.max_response_tokens."""
        for position, request in enumerate(requests):
            if not 0 < len(request.prompt) <= self._config.max_prompt_tokens:
                raise ValueError(
                    f"request {position} has a prompt of {len(request.prompt)} tokens; expected 1 .. "
                    f"{self._config.max_prompt_tokens} (rollout.max_prompt_tokens)"
                )
            if request.settings and request.settings.max_tokens > self._config.max_response_tokens:
                raise ValueError(
                    f"request {position} asks for {request.settings.max_tokens} tokens; expected at most "
                    f"{self._config.max_response_tokens} (rollout.max_response_tokens)"
                )

    async def sample(
        self, llm: "AsyncLLM", requests: Sequence[SampleRequest], *, version: int, arrived: Arrived | None = None
    ) -> list[Rollout]:
        """One response per request, in order, under the weights `version`, which the engine has."""

        async def sample_one(index: int, request: SampleRequest) -> Rollout:
            rollout = await self._sample_one(llm, request, version)
            if arrived is not None:
                arrived(index, rollout)
            return rollout

        tasks = [asyncio.create_task(sample_one(index, request)) for index, request in enumerate(requests)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample_one(self, llm: "AsyncLLM", request: SampleRequest, version: int) -> Rollout:
        self._num_requests += 1
        params = build_sampling_params(
            self._config, seed=request.seed, stop_token_ids=self._stop_token_ids, settings=request.settings
        )
        prompt: Any = {"prompt_token_ids": list(request.prompt)}
        if request.settings is not None:
            # Of what it leaves in the prefix cache training finds nothing: its samples are the same without it.
            prompt["cache_salt"] = _NOT_TRAINED_ON
        output: Any = None
        async for latest in llm.generate(prompt, params, request_id=str(self._num_requests)):
            output = latest
        completion = output.outputs[0]
        self._check_completion(completion, version)
        tokens = completion.token_ids
        logps = [logprobs[token].logprob for token, logprobs in zip(tokens, completion.logprobs, strict=True)]
        return Rollout(
            prompt=as_tokens(request.prompt),
            response=as_tokens(tokens),
            behavior_logp=as_floats(logps),
            stop_reason=_STOP_REASONS[completion.finish_reason],
            policy_version=version,
        )

    def _check_completion(self, completion: Any, version: int) -> None:
        if completion.finish_reason not in _STOP_REASONS:
            raise EngineError(f"{self._name} ended a request with {completion.finish_reason!r}, not stop or length")
        versions, expected = sampled_versions(completion), {weights_label(version)}
        if versions - expected:
            raise WrongVersionError(f"{self._name} sampled under weight versions {versions}, expected {expected}")
