"""From megarl's configuration to vLLM's engine arguments and sampling parameters.

What correctness rests on is fixed here and cannot be overridden: log-probs after temperature (`processed_logprobs`),
no sampling defaults from the checkpoint's generation_config.json, no stop but the given ones, megarl's weight transfer.
"""

import difflib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from megarl.config.base import ConfigError
from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.records import SamplingSettings
from megarl.rollout.plugin import BACKEND, WORKER_EXTENSION

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

_FIXED = {
    "model": "model.path",
    "dtype": "model.dtype",
    "tensor_parallel_size": "rollout.tensor",
    "max_model_len": "rollout.max_prompt_tokens and rollout.max_response_tokens",
    "gpu_memory_utilization": "rollout.memory_fraction",
    "kv_cache_memory_bytes": "rollout.cpu_kv_cache_gib",
    "logprobs_mode": None,
    "generation_config": None,
    "skip_tokenizer_init": None,
    "weight_transfer_config": None,
    "worker_extension_cls": None,
    "enable_sleep_mode": "cluster.colocate",
    "pipeline_parallel_size": None,
    "data_parallel_size": None,
}
"""Engine arguments megarl owns, and the option that sets them (None: nothing may)."""


def check_vllm_overrides(overrides: dict[str, Any]) -> None:
    """Raise ConfigError for a name vLLM does not know (naming the nearest) or one that megarl sets itself."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [field.name for field in fields(AsyncEngineArgs)]
    for name in overrides:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see vLLM's engine arguments"
            raise ConfigError(f"rollout.vllm_overrides.{name}: vLLM has no engine argument of this name; {hint}")
        if name in _FIXED:
            owner = _FIXED[name]
            hint = f"set {owner} instead" if owner else "the training would be wrong with another value"
            raise ConfigError(f"rollout.vllm_overrides.{name}: megarl sets this argument itself; {hint}")


def build_engine_args(config: RolloutConfig, model: ModelConfig, *, sleeps: bool = False) -> "AsyncEngineArgs":
    """vLLM's arguments for one engine, overrides last. Raises ConfigError for bad overrides.

    sleeps: it can give its memory back, where this build of vLLM has that.
    """
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    check_vllm_overrides(config.vllm_overrides)
    arguments: dict[str, Any] = {
        "model": model.path,
        "dtype": model.dtype,
        "tensor_parallel_size": config.tensor,
        "max_model_len": config.max_prompt_tokens + config.max_response_tokens,
        "skip_tokenizer_init": not config.stop_strings,  # only texts to stop at are looked for in text
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "worker_extension_cls": WORKER_EXTENSION,
        "distributed_executor_backend": "mp",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        arguments["enforce_eager"] = True  # compiling costs minutes of a CPU run and wins little there
        # A prompt split over steps makes vLLM rewind the request's seeded generator by its CUDA offset, which a CPU
        # generator has not: the worker dies with "CPU Generator does not use offset".
        arguments["enable_chunked_prefill"] = False
        arguments["kv_cache_memory_bytes"] = int(config.cpu_kv_cache_gib * 2**30) // config.tensor
    else:
        arguments["gpu_memory_utilization"] = config.memory_fraction
        arguments["enable_sleep_mode"] = sleeps
    return AsyncEngineArgs(**(arguments | config.vllm_overrides))


def build_sampling_params(
    config: RolloutConfig,
    *,
    seed: int,
    stop_token_ids: tuple[int, ...],
    settings: SamplingSettings | None = None,
) -> "SamplingParams":
    """Pure sampling at the configured temperature, or by `settings`: no top-k, no penalty, and no top-p but theirs;
    log-probs of sampled tokens, of the distribution that they were drawn from.

    `stop_token_ids` are all that stop, the configuration's included. A stop string's tokens stay in the response; it is
    looked for in the whole text, special tokens spelled out.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        seed=seed,
        temperature=settings.temperature if settings else config.temperature,
        top_p=settings.top_p if settings else 1.0,
        top_k=0,
        max_tokens=settings.max_tokens if settings else config.max_response_tokens,
        stop_token_ids=list(stop_token_ids),
        stop=list(config.stop_strings),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        ignore_eos=True,  # the checkpoint's end-of-sequence tokens; the given ones stop all the same
        logprobs=0,
        detokenize=bool(config.stop_strings),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
