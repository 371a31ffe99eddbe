"""What megarl hands to vLLM, checked before anything starts."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.records import SampleRequest, SamplingSettings
from megarl.rollout.arguments import build_engine_args, build_sampling_params, check_vllm_overrides
from megarl.rollout.environment import bind_threads
from megarl.rollout.sampling import Sampler


@pytest.mark.parametrize(
    ("cpus", "tensor", "expected"),
    [({0, 1}, 1, "0,1"), ({0, 1}, 2, "0|1"), ({9, 4, 6, 2, 5}, 2, "2,4|5,6"), ({3}, 2, "3|3")],
)
def test_bind_threads(cpus: set[int], tensor: int, expected: str) -> None:
    assert bind_threads(cpus, tensor) == expected


def test_unknown_override_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.vllm_overrides\.max_num_seq: .* did you mean max_num_seqs"):
        check_vllm_overrides({"max_num_seq": 8})


@pytest.mark.parametrize(("name", "hint"), [("tensor_parallel_size", "rollout.tensor"), ("logprobs_mode", "wrong")])
def test_what_megarl_owns_cannot_be_overridden(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        check_vllm_overrides({name: "anything"})


def test_engine_arguments() -> None:
    config = RolloutConfig(
        tensor=2,
        max_prompt_tokens=100,
        max_response_tokens=28,
        cpu_kv_cache_gib=0.5,
        vllm_overrides={"max_num_seqs": 5},
    )
    arguments = build_engine_args(config, ModelConfig(path="some/model", dtype="float32"))
    assert (arguments.model, arguments.dtype, arguments.tensor_parallel_size) == ("some/model", "float32", 2)
    assert arguments.max_model_len == 128
    assert arguments.max_num_seqs == 5
    assert arguments.logprobs_mode == "processed_logprobs"
    assert arguments.weight_transfer_config.backend == "megarl"
    assert arguments.kv_cache_memory_bytes == 2**28  # per worker: half of the engine's half GiB


def test_sampling_is_pure() -> None:
    params = build_sampling_params(RolloutConfig(temperature=0.7, max_response_tokens=9), seed=4, stop_token_ids=(1, 2))
    assert (params.n, params.seed, params.temperature, params.max_tokens) == (1, 4, 0.7, 9)
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (1.0, 0, 0.0, 1.0)
    assert params.stop_token_ids == [1, 2]
    assert (params.stop, params.detokenize, params.ignore_eos) == ([], False, True)


def test_an_evaluation_samples_as_it_says() -> None:
    settings = SamplingSettings(temperature=0.5, top_p=0.9, max_tokens=7)
    config = RolloutConfig(temperature=0.7, max_response_tokens=9, stop_strings=["x"])
    params = build_sampling_params(config, seed=4, stop_token_ids=(1, 2), settings=settings)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 0, 7)
    assert (params.seed, params.stop_token_ids, params.stop, params.logprobs) == (4, [1, 2], ["x"], 0)


def test_an_engine_is_asked_for_no_more_than_it_is_made_for() -> None:
    sampler = Sampler(RolloutConfig(max_response_tokens=9), name="engine 0", stop_token_ids=())
    settings = SamplingSettings(temperature=1.0, top_p=0.9, max_tokens=10)
    with pytest.raises(ValueError, match=r"request 0 asks for 10 tokens; expected at most 9"):
        sampler.check_prompts([SampleRequest(prompt=(1,), seed=0, settings=settings)])
    sampler.check_prompts([SampleRequest(prompt=(1,), seed=0, settings=replace(settings, max_tokens=9))])


def test_an_evaluation_shares_no_prefix_with_training() -> None:
    """What it leaves in the prefix cache would else be found by training, whose samples it must not change."""
    prompts: list[dict[str, object]] = []

    class Asked:
        async def generate(self, prompt: dict[str, object], *_: object, **__: object) -> AsyncIterator[object]:
            prompts.append(prompt)
            token = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=-1.0)}], finish_reason="stop")
            yield SimpleNamespace(outputs=[token])

    settings = SamplingSettings(temperature=1.0, top_p=0.9, max_tokens=4)
    sampler = Sampler(RolloutConfig(), name="engine 0", stop_token_ids=())
    requests = [SampleRequest(prompt=(1,), seed=0), SampleRequest(prompt=(1,), seed=0, settings=settings)]
    llm: Any = Asked()
    asyncio.run(sampler.sample(llm, requests, version=0))
    assert prompts == [{"prompt_token_ids": [1]}, {"prompt_token_ids": [1], "cache_salt": "evaluation"}]


def test_stop_strings_are_kept_and_need_the_tokenizer() -> None:
    config = RolloutConfig(stop_strings=["\n\n", "<|x|>"])
    params = build_sampling_params(config, seed=0, stop_token_ids=())
    assert (params.stop, params.include_stop_str_in_output, params.detokenize) == (["\n\n", "<|x|>"], True, True)
    assert not params.skip_special_tokens
    model = ModelConfig(path="some/model", dtype="float32")
    assert not build_engine_args(config, model).skip_tokenizer_init
    assert build_engine_args(RolloutConfig(), model).skip_tokenizer_init
