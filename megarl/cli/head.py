"""The head of a run whose configuration leaves it open (`policy.head = "auto"`): asked of the GPUs of this machine."""

import os

from megarl.cli.findings import ask_process, ask_python
from megarl.cli.stack import deciding_versions, detect_stack
from megarl.cli.visible_gpus import VISIBLE
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.planning.head import choose_head, with_head

_MIB = 1 << 20
_QUERY = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
_PROBE = """
import torch
print(min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())))
"""


def pin_head(config: RunConfig, *, sft: bool = False) -> tuple[RunConfig, tuple[str, ...]]:
    """The configuration with a head, and what to say of it; as it is where it names one. sft: of `megarl sft`.

    Raises ConfigError where the run would be on GPUs and this machine shows none.
    """
    if config.policy.head != "auto":
        return config, ()
    choice = choose_head(config, read_model_shape(config.model.path), gpu_bytes=find_gpu_bytes(), sft=sft)
    return with_head(config, choice), (f"head   {choice} (policy.head auto)",)


def find_gpu_bytes() -> int | None:
    """Memory of the smallest GPU that a run would see here; None where torch is a CPU build. nvidia-smi says it of all
    GPUs. Where CUDAVISIBLE_DEVICES chooses among them torch says it: its numbers are in CUDA's order.

    Raises ConfigError where there is none.
    """
    if detect_stack(deciding_versions()) == "cpu":
        return None
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        answer = ask_python(_PROBE, timeout_s=180)
        if not answer.text.isdigit():
            raise ConfigError(
                'policy.head "auto" is decided by the memory of the GPUs, and torch sees none with '
                f"{VISIBLE}={visible!r} ({answer.text}); choose GPUs that there are, or set policy.head=logits or "
                "fused"
            )
        return int(answer.text)
    answer = ask_process(["sh", "-c", f"{' '.join(_QUERY)} | sort -n | head -n 1"], timeout_s=60)
    if not answer.text.isdigit():
        raise ConfigError(
            'policy.head "auto" is decided by the memory of the GPUs, and nvidia-smi tells of none on this machine '
            f"({answer.text}); set policy.head=logits or fused (`megarl plan --gpu-memory-gib GIB` says which fits)"
        )
    return int(answer.text) * _MIB
