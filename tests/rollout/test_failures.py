"""Root causes read back from logs as vLLM writes them."""

import pytest

from megarl.rollout.failures import describe_failure, find_root_cause

LOG = """\
2026-11-21 21:02:41,546 ERROR pid=1 vllm.v1.executor.multiproc_executor: WorkerProc failed to start.
Traceback (most recent call last):
  File "gpu_worker.py", line 300, in init_device
ValueError: Free memory on device (3.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 GiB).
2026-11-21 21:02:42,546 ERROR pid=2 vllm.v1.engine.core: EngineCore failed to start.
Traceback (most recent call last):
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
"""
WRAPPER = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)


def test_skips_the_wrappers() -> None:
    assert find_root_cause(LOG).startswith("ValueError: Free memory on device")
    assert find_root_cause("INFO all is well") is None


def test_cause_and_advice() -> None:
    text = describe_failure(WRAPPER, LOG)
    assert text.startswith("ValueError: Free memory on device")
    assert "To change: lower rollout.cpu_kv_cache_gib (CPU) or rollout.memory_fraction (CUDA)" in text


def test_unknown_cause_shows_the_end_of_the_log() -> None:
    text = describe_failure(WRAPPER, "line one\nfoo.BarError: odd\nlast line\n")
    assert text.startswith("foo.BarError: odd")
    assert text.endswith("last line")


def test_killed_process() -> None:
    error = RuntimeError(
        "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': -9}"
    )
    assert "died of signal 9 (usually the machine ran out of memory)" in describe_failure(error, "INFO loading\n")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("/no/such is not a local folder and is not a valid model identifier"), "model.path must be"),
        (ValueError("max_model_len (4096) is greater than max_position_embeddings=2048"), "lower rollout.max_prompt"),
        (OSError("[Errno 98] Address already in use"), "another process holds the port"),
    ],
)
def test_errors_raised_in_this_process_speak_for_themselves(error: Exception, advice: str) -> None:
    text = describe_failure(error, LOG)
    assert str(error) in text
    assert advice in text
