"""Importing changes nothing; the adaptation makes `torch.cuda` mean the CPU in the process that asks for it."""

import subprocess
import sys

UNTOUCHED = """
import importlib, pkgutil, torch
before = {name: getattr(torch.cuda, name) for name in ("current_device", "synchronize", "Stream", "is_initialized")}
import megarl
for module in pkgutil.walk_packages(megarl.__path__, "megarl."):
    if not module.name.startswith("megarl.runtime"):
        importlib.import_module(module.name)
assert all(getattr(torch.cuda, name) is value for name, value in before.items())
assert torch.overrides._get_current_function_mode_stack() == []
"""

ADAPTED = """
import torch
from megarl.parallel.device import adapt_process_to_cpu
adapt_process_to_cpu()
adapt_process_to_cpu()  # twice is once
assert torch.cuda.current_device() == torch.device("cpu")
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.ones(1).cuda().device.type == "cpu"
assert torch.ones(1).to("cuda:0").device.type == "cpu"
assert torch.ones(1).to(torch.device("cuda", 0), torch.float64).dtype == torch.float64
assert torch.ones(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
with torch.cuda.stream(torch.cuda.Stream()):
    torch.cuda.synchronize()
torch.cuda.manual_seed(3)
state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(3))
"""


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_every_module_leaves_torch_as_it_was() -> None:
    run(UNTOUCHED)


def test_the_adaptation_makes_cuda_mean_the_cpu() -> None:
    run(ADAPTED)


BACKENDS = """
import torch
from megarl.parallel import device
assert device.collective_backend() == device.collective_backend("gloo") == "gloo"
try:
    device.collective_backend("nccl")
except ValueError as error:
    assert "sees no GPU; use auto or gloo" in str(error)
else:
    raise AssertionError("expected ValueError")
torch.cuda.is_available = lambda: True
assert device.collective_backend() == device.collective_backend("nccl") == "nccl"
assert device.collective_backend("gloo") == "gloo"
"""


def test_the_backend_is_chosen_or_follows_the_device() -> None:
    run(BACKENDS)
