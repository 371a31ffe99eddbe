"""The Triton kernels without a GPU: interpreted in a process of their own, and compiled for NVIDIA GPUs.

Neither is a run on a GPU. The interpreter checks the arithmetic, the compiler that the kernels are legal, fit in a
multiprocessor's shared memory and use tensor cores.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from megarl.parallel import fused_linear_triton, vocab_triton
from megarl.parallel.kernels import fused_linear_kernels, vocab_kernels

ROOT = Path(__file__).parent.parent.parent
SHARED_MEMORY_BYTES = {80: 163 << 10, 90: 227 << 10}
"""The most one block may use (CUDA C++ Programming Guide, technical specifications per compute capability)."""
MOST_REGISTERS = 255
"""Of a thread, on all of them."""
MOST_SPILLED_BYTES = {80: 16, 90: 0}
"""Triton 3.9 spills nothing; Triton 3.6, the GPU stack's, 16 bytes of the fused head's forward on the older card."""


def test_interpreted_kernels_match_the_reference() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/parallel/triton_interpreted_cases.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_importing_the_cores_does_not_need_triton() -> None:
    """Where `import triton` fails, the package imports, and CUDA tensors meet that ImportError and no fallback."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from megarl.parallel import fused_linear, kernels, vocab
assert kernels.vocab_kernels(torch.device("cpu")).__name__.endswith("vocab_blocked")
assert kernels.fused_linear_kernels(torch.device("cpu")).__name__.endswith("fused_linear_blocked")
for choose in (kernels.vocab_kernels, kernels.fused_linear_kernels):
    try:
        choose(torch.device("cuda"))
    except ImportError as error:
        assert "triton" in str(error)
    else:
        raise AssertionError("expected ImportError")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_cuda_tensors_get_the_triton_kernels() -> None:
    assert vocab_kernels(torch.device("cuda", 1)) is vocab_triton
    assert fused_linear_kernels(torch.device("cuda", 1)) is fused_linear_triton


def _compile(kernel: Any, arch: int, *, pointers: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
    """Compile as a launch would with sizes, strides and addresses that are multiples of 16."""
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = pointers.get(name, "i32")
        if name not in ("factor_stride", "num_tokens", "num_rows"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES[arch]
    used = count_registers(compiled.asm["ptx"], arch)
    assert used.registers <= MOST_REGISTERS
    assert used.spilled_bytes <= MOST_SPILLED_BYTES[arch], f"{kernel.__name__}: {used}"
    return compiled


class Registers(NamedTuple):
    """Of a thread."""

    registers: int
    spilled_bytes: int
    """Stored to local memory, which is the GPU's."""


def count_registers(ptx: str, arch: int) -> Registers:
    """What the assembler that Triton brings says of a kernel."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target
    assert target[1].startswith(f"sm_{arch}")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers, said
    assert spilled, said
    return Registers(int(registers[1]), int(spilled[1]))


@pytest.mark.parametrize(("arch", "dtype"), [(80, "*bf16"), (90, "*bf16"), (90, "*fp32"), (90, "*fp64")])
def test_core_kernels_compile(arch: int, dtype: str) -> None:
    statistics = "*fp64" if dtype == "*fp64" else "*fp32"
    common = {"DTYPE": tl.float64 if dtype == "*fp64" else tl.float32, "BLOCK": vocab_triton.BLOCK_COLUMNS}
    forward = _compile(
        vocab_triton._statistics_kernel,
        arch,
        pointers={"logits": dtype, "column": "*i64", "factor": statistics, "out": statistics},
        constants=common | {"EXPECTED_Q": True, "column_stride": 1},
        num_warps=vocab_triton.NUM_WARPS,
    )
    per_token = dict.fromkeys(("factor", "maximum", "constant", "slope", "target_value"), statistics)
    backward = _compile(
        vocab_triton._gradient_kernel,
        arch,
        pointers={"logits": dtype, "out": dtype, "column": "*i64"} | per_token,
        constants=common | {"column_stride": 1, "out_column_stride": 1},
        num_warps=vocab_triton.NUM_WARPS,
    )
    # 16 bytes a load and a store: what a kernel limited by memory needs.
    vector = "v2" if dtype == "*fp64" else "v4"
    assert f"ld.global.{vector}" in forward.asm["ptx"]
    assert f"ld.global.{vector}" in backward.asm["ptx"]
    assert f"st.global.{vector}" in backward.asm["ptx"]


@pytest.mark.parametrize(("arch", "dtype"), [(80, "*bf16"), (90, "*bf16"), (90, "*fp16"), (90, "*fp32")])
def test_fused_kernels_compile(arch: int, dtype: str) -> None:
    tiles = fused_linear_triton._FLOAT_TILES if dtype == "*fp32" else fused_linear_triton._HALF_TILES
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    operands = {"hidden": dtype, "weight": dtype, "column": "*i64", "factor": "*fp32"}
    unit = {"hidden_inner_stride": 1, "weight_inner_stride": 1}
    blocks = {"BLOCK_B": tiles.tokens, "BLOCK_D": tiles.columns, "BLOCK_E": tiles.inner}
    per_token = dict.fromkeys(("maximum", "constant", "slope", "target_value"), "*fp32")
    compiled = [
        _compile(
            fused_linear_triton._statistics_kernel,
            arch,
            pointers=operands | {"out": "*fp32"},
            constants=unit | blocks | {"EXPECTED_Q": True, "STRETCH": fused_linear_triton.STRETCH_COLUMNS},
            **options,
        ),
        _compile(
            fused_linear_triton._gradient_kernel,
            arch,
            pointers=operands | per_token | {"out": dtype},
            constants=unit | blocks,
            **options,
        ),
        _compile(
            fused_linear_triton._add_product_kernel,
            arch,
            pointers={"left": dtype, "right": dtype, "total": "*fp32"},
            constants={
                "right_column_stride": 1,
                "BLOCK_B": tiles.tokens,
                "BLOCK_H": tiles.columns,
                "BLOCK_E": tiles.inner,
            },
            **options,
        ),
    ]
    if dtype != "*fp32":
        tensor_core = "wgmma.mma_async" if arch == 90 else "mma.sync"
        assert all(tensor_core in kernel.asm["ptx"] for kernel in compiled)
