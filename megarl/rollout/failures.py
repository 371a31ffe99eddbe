"""What went wrong in an engine, in one sentence with what to change.

vLLM's processes log their tracebacks and tell the owner only "see root cause above". Here the root cause is read back
from the engine's log: the last exception that is not one of vLLM's own "something failed" wrappers.
"""

import re

_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Exit|Timeout|Refused)\b(?:: .*)?$")
_WRAPPERS = (
    "initialization failed",
    "See stack trace for root cause",
    "See root cause above",
    "EngineCore encountered an issue",
    "Worker failed with error",
    "cancelled",
)
_TAIL_LINES = 15
_KILLED = re.compile(r"\{[^}]*: (-\d+)[^}]*\}")

_ADVICE: tuple[tuple[str, str], ...] = (
    (r"EADDRINUSE|Address already in use|failed to listen", "another process holds the port: stop it, or start again"),
    (
        r"CUDA out of memory|OutOfMemoryError",
        "lower rollout.memory_fraction, or give the engine more GPUs (rollout.tensor)",
    ),
    (
        r"No available memory for the cache blocks|KV cache is needed|larger than the available KV cache memory",
        "raise rollout.memory_fraction (CUDA) or rollout.cpu_kv_cache_gib (CPU), or lower rollout.max_prompt_tokens "
        "and rollout.max_response_tokens",
    ),
    (
        r"less than requested memory|less than desired (?:CPU|GPU) memory",
        "lower rollout.cpu_kv_cache_gib (CPU) or rollout.memory_fraction (CUDA), or stop what else uses the memory",
    ),
    (r"Cannot allocate memory|bad_alloc|MemoryError", "the machine is out of memory: lower rollout.cpu_kv_cache_gib"),
    (
        r"max_model_len|max_position_embeddings",
        "lower rollout.max_prompt_tokens and rollout.max_response_tokens: the model was made for fewer tokens",
    ),
    (
        r"is not a local folder|does not appear to have|config\.json|Repo id|No such file|safetensors",
        "model.path must be the directory of a Hugging Face checkpoint: config.json and safetensors weights",
    ),
    (r"not supported for now|Model architectures", "this vLLM cannot run the model's architecture"),
    (r"divisible by|must be divisible", "rollout.tensor must divide the model's attention heads"),
    (
        r"Invalid weight transfer backend",
        "megarl must be installed (pip install) where vLLM runs: its plug-in was not found",
    ),
)


class EngineError(RuntimeError):
    """An engine cannot sample any more; the text names the cause."""


class ResidualMemoryError(RuntimeError):
    """Engines that sleep keep more of a GPU than they may: a new process has none of what has grown there."""


class EngineLost(RuntimeError):
    """An engine died or hangs, and another is being started in its place; the text says why. What was asked of it is
    not done, and the new one has no weights of the policy yet."""


class EngineStartError(EngineError):
    """An engine did not start; the text names the cause and what to change."""


class WeightAdoptionError(EngineError):
    """New weights did not reach an engine; it must not sample until it is started again."""


class WrongVersionError(RuntimeError):
    """An engine sampled under other weights than the policy published: not to be repaired by starting it again."""


def find_root_cause(log_text: str) -> str | None:
    """The last exception line of a log that is not one of vLLM's wrappers, or None."""
    cause = None
    for line in log_text.splitlines():
        text = line.strip()
        if _EXCEPTION.match(text) and not any(wrapper in text for wrapper in _WRAPPERS):
            cause = text
    return cause


def _exit_cause(error_text: str) -> str | None:
    killed = _KILLED.search(error_text)
    if killed is None:
        return None
    number = -int(killed.group(1))
    reason = " (usually the machine ran out of memory)" if number == 9 else ""
    return f"the engine process died of signal {number}{reason}"


def describe_failure(error: BaseException, log_text: str) -> str:
    """Cause, what to change where it is known, and the end of the log where the cause is not."""
    wrapped = any(wrapper in str(error) for wrapper in _WRAPPERS) or not str(error)
    own = f"{type(error).__name__}: {error}"
    cause = (find_root_cause(log_text) or _exit_cause(str(error)) or own) if wrapped else own
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, cause)), None)
    if advice is not None:
        return f"{cause}. To change: {advice}"
    tail = "\n".join(log_text.splitlines()[-_TAIL_LINES:])
    return f"{cause}. The end of the engine's log:\n{tail}" if wrapped and tail else cause
