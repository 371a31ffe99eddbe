"""The kernels of megarl.parallel on this device against float64, with the references of tests/parallel."""

import itertools
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts.check import Check
from megarl.parallel import fused_linear, fused_linear_triton, vocab, vocab_triton
from megarl.parallel.rotary import Rotation, rotate, rotation_at
from tests.parallel.reference import (
    linear_case,
    logits_case,
    reference_distribution,
    reference_gradient,
    reference_linear_gradients,
    upstream_weights,
)

GRADIENT = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5, torch.float64: 1e-11}
"""Norm of the error over the norm: one rounding of the logits' dtype."""
FUSED_GRADIENT = {torch.bfloat16: 8e-3, torch.float16: 8e-3, torch.float32: 2e-5}
FUSED_VALUES = 1e-4
"""One H200: 1.6e-5 for log-probs and 4.6e-5 for entropies (fp32 sums over 151,936 products of 1,536 numbers)."""
BF16 = torch.bfloat16
VOCABULARIES = ((151_936, 151_936), (128_256, 128_256), (49_152, 49_152), (32_000, 32_064), (50_257, 50_304), (77, 80))
"""Token ids and columns."""
LINEAR_SHAPES = ((200, 1536, 32_000, 32_064), (77, 896, 50_257, 50_304), (33, 3584, 4099, 4104), (37, 72, 300, 304))
"""Tokens, hidden size, token ids, rows of the weight."""
PER_TOKEN = "per token"


def run(check: Check) -> None:
    if check.small:
        interpret_small_blocks()
    worst: dict[str, dict[str, float]] = defaultdict(dict)
    total = right = 0
    for label, work in cases(check):
        total += 1
        errors = check.attempt(label, work, need_s=3)
        if errors is None:
            continue
        right += check.judge(label, errors)
        of_kind = worst[label.partition(",")[0]]
        for name, (found, limit) in errors.items():
            if limit:
                of_kind[name] = max(of_kind.get(name, 0.0), found)
    check.say(f"{right} of {total} cases within their limits of float64; the worst:")
    for kind, errors in worst.items():
        check.say(f"{kind}: " + ", ".join(f"{name} {found:.1e}" for name, found in errors.items()))


def interpret_small_blocks() -> None:
    """Triton's kernels for CPU tensors, several blocks a case."""
    vocab.vocab_kernels = lambda _device: vocab_triton  # type: ignore[assignment,return-value]
    fused_linear.fused_linear_kernels = lambda _device: fused_linear_triton  # type: ignore[assignment,return-value]
    vocab_triton.BLOCK_COLUMNS = 32
    fused_linear_triton.STRETCH_COLUMNS = 128
    fused_linear_triton.GRADIENT_BUFFER_BYTES = 128 * 11 * 2


def cases(check: Check) -> Any:
    """(label, what returns the errors and their limits)."""
    # Triton's interpreter cuts bfloat16 off where a GPU rounds, and cannot multiply it.
    dtypes = (torch.float32, torch.float64) if check.small else tuple(GRADIENT)
    vocabularies = ((133, 137),) if check.small else VOCABULARIES
    tokens = 11 if check.small else 37
    temperatures = ((1.0, True), (0.7, False), (PER_TOKEN, True))
    for dtype, (ids, columns), (temperature, inplace) in itertools.product(dtypes, vocabularies, temperatures):
        label = f"core {_name(dtype)}, {tokens} x {ids} of {columns}, temperature {temperature}, inplace {inplace}"
        yield label, _bind(core_errors, check, tokens, ids, columns, dtype, temperature, inplace)
    for dtype in dtypes:
        ids, columns = vocabularies[0]
        label = f"core {_name(dtype)}, logits of +-1e4"
        yield label, _bind(core_errors, check, tokens, ids, columns, dtype, 1.0, True, spread=1e4)
    if not check.small:
        yield "core bfloat16, more than 2^31 logits", _bind(many_logits_errors, check)
    linear_dtypes = (torch.float16, torch.float32) if check.small else tuple(FUSED_GRADIENT)
    shapes = ((11, 72, 300, 304),) if check.small else LINEAR_SHAPES
    for dtype, shape in itertools.product(linear_dtypes, shapes):
        tokens, hidden, ids, rows = shape
        label = f"fused {_name(dtype)}, {tokens} x {hidden} x {ids} of {rows}"
        yield label, _bind(fused_errors, check, shape, dtype)
    for dtype, heads in itertools.product((BF16, torch.float32), ((12, 2, 128), (8, 8, 64), (9, 3, 64))):
        yield f"attention {_name(dtype)}, heads {heads}", _bind(attention_errors, check, heads, dtype)
    for dtype in (BF16, torch.float32):
        yield f"rotation {_name(dtype)}, to position 4,095", _bind(rotation_errors, check, dtype)


def core_errors(
    check: Check,
    tokens: int,
    ids: int,
    columns: int,
    dtype: torch.dtype,
    temperature: float | str,
    inplace: bool,
    *,
    spread: float = 3.0,
) -> dict[str, tuple[float, float]]:
    """With rows of -inf, equal and single logits, and NaN in the padding."""
    logits, target = logits_case(tokens=tokens, columns=columns, spread=spread)
    target = target.clamp(max=ids - 1)
    logits[2, : ids // 3], logits[3, ::2], logits[4], logits[5, 1:] = -torch.inf, -torch.inf, 7.0, -torch.inf
    target[2], target[3], target[5] = ids - 1, 1, 0
    logits, target = logits.to(dtype).to(check.device), target.to(check.device)
    scale = torch.linspace(0.5, 2.0, tokens, device=check.device) if temperature == PER_TOKEN else temperature
    weights = upstream_weights(tokens).to(check.device)
    padded = logits.clone()
    padded[:, ids:] = torch.nan
    leaf = padded.requires_grad_()
    found = vocab.vocab_parallel_logp_entropy(
        leaf.clone(), target, vocab_start=0, vocab_stop=ids, temperature=scale, inplace_backward=inplace,
        with_expected_q=True,
    )  # fmt: skip
    (weights[0] * found.logp_T + weights[1] * found.entropy_T).sum().backward()
    gradient = leaf.grad
    assert gradient is not None
    values = 1e-11 if dtype == torch.float64 else 2e-5
    expected = reference_gradient(logits[:, :ids], target, weights, scale)  # type: ignore[arg-type]
    return {
        **_value_errors(found, reference_distribution(logits[:, :ids], target, scale), values),  # type: ignore[arg-type]
        "gradient": (_relative(gradient[:, :ids], expected), GRADIENT[dtype]),
        "padding": (float(gradient[:, ids:].abs().max()) if columns > ids else 0.0, 0.0),
    }


def many_logits_errors(check: Check) -> dict[str, tuple[float, float]]:
    """16,384 x 151,936; five rows are compared."""
    tokens, ids = 16_384, 151_936
    logits = torch.empty(tokens, ids, device=check.device, dtype=BF16).normal_(0, 3)
    target = torch.randint(0, ids, (tokens,), device=check.device)
    rows = torch.tensor([0, 1, tokens // 2, tokens - 2, tokens - 1], device=check.device)
    kept, weights = logits[rows].clone(), upstream_weights(tokens).to(check.device)
    view = logits.requires_grad_().view(tokens, ids)
    found = vocab.vocab_parallel_logp_entropy(view, target, vocab_start=0, vocab_stop=ids, with_expected_q=True)
    (gradient,) = torch.autograd.grad([found.logp_T, found.entropy_T], [view], [weights[0], weights[1]])
    expected = reference_gradient(kept, target[rows], weights[:, rows])
    of_rows = type(found)(*(value[rows] for value in found))
    return {
        **_value_errors(of_rows, reference_distribution(kept, target[rows]), 2e-5),
        "gradient": (_relative(gradient[rows], expected), GRADIENT[BF16]),
    }


def fused_errors(check: Check, shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    tokens, size, ids, rows = shape
    hidden, weight, target = linear_case(tokens=tokens, columns=ids, hidden_size=size, dtype=torch.float64)
    weight *= 3 / 0.7 / size**0.5  # logits of about +-3, as in the other cases
    hidden, weight, target = (tensor.to(check.device) for tensor in (hidden.to(dtype), weight.to(dtype), target))
    padding = torch.full((rows - ids, size), torch.nan, dtype=dtype, device=check.device)
    leaves = (hidden.clone().requires_grad_(), torch.cat((weight, padding)).requires_grad_())
    weights = upstream_weights(tokens).to(check.device)
    found = fused_linear.fused_linear_logp_entropy(
        *leaves, target, vocab_start=0, vocab_stop=ids, temperature=0.7, with_expected_q=True
    )
    (weights[0] * found.logp_T + weights[1] * found.entropy_T).sum().backward()
    expected = reference_distribution(hidden.double() @ weight.double().t(), target, 0.7)
    gradients = reference_linear_gradients(hidden, weight, target, weights, 0.7)
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    return {
        **_value_errors(found, expected, FUSED_VALUES),
        "gradient of hidden states": (_relative(leaves[0].grad, gradients[0]), FUSED_GRADIENT[dtype]),
        "gradient of the weight": (_relative(leaves[1].grad[:ids], gradients[1]), FUSED_GRADIENT[dtype]),
        "padding": (float(leaves[1].grad[ids:].abs().max()), 0.0),
    }


def attention_errors(check: Check, heads: tuple[int, int, int], dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """The policy's own attention without Transformer Engine, with a rotation by nothing."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megarl.policy.layers import PackedAttention, PackedSequences

    num, groups, size = heads
    lengths = (5, 30, 1, 17) if check.small else (5, 300, 129, 1, 77)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=check.device)
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randn(sum(lengths), count, size, generator=generator).to(check.device, dtype).requires_grad_()
        for count in (num, groups, groups)
    ]
    upstream = torch.randn(sum(lengths), num * size, generator=generator).to(check.device, dtype)
    still = Rotation(
        torch.ones(sum(lengths), 1, size // 2, device=check.device, dtype=dtype),
        torch.zeros(sum(lengths), 1, size // 2, device=check.device, dtype=dtype),
    )
    config = TransformerConfig(
        num_layers=1, hidden_size=num * size, num_attention_heads=num, num_query_groups=groups, attention_dropout=0.0
    )
    packed = PackedSequences(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths), lengths=lengths, rotation=still,
    )  # fmt: skip
    out = PackedAttention(config)(*operands, packed_seq_params=packed)
    found = [out.detach(), *torch.autograd.grad(out, operands, upstream)]
    limit = 1e-2 if dtype == BF16 else 1e-5
    names = ("result", "gradient of query", "gradient of key", "gradient of value")
    expected = attend_in_double(operands, bounds.tolist(), upstream)
    return {name: (_relative(a, b), limit) for name, a, b in zip(names, found, expected, strict=True)}


def attend_in_double(operands: list[Tensor], bounds: list[int], upstream: Tensor) -> list[Tensor]:
    leaves = [operand.detach().double().requires_grad_() for operand in operands]
    shared = leaves[0].shape[1] // leaves[1].shape[1]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        query, key, value = (tensor[start:stop] for tensor in leaves)
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        heads = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(*heads, is_causal=True)[0].transpose(0, 1))
    out = torch.cat(parts).flatten(1)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.double())]


def rotation_errors(check: Check, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Pairs as complex numbers in float64; the angles are float32 products, as transformers makes them."""
    size = 64
    position = torch.arange(0, 4096, 13, device=check.device)
    frequencies = 1e6 ** -(torch.arange(size // 2, dtype=torch.float32) * 2 / size).to(check.device)
    heads = torch.randn(len(position), 4, size, generator=torch.Generator().manual_seed(0)).to(check.device, dtype)
    upstream = torch.randn(heads.shape, generator=torch.Generator().manual_seed(1)).to(check.device, dtype)
    leaf = heads.clone().requires_grad_()
    out = rotate(leaf, rotation_at(position, frequencies, dtype))
    (gradient,) = torch.autograd.grad(out, leaf, upstream)
    angles = (position.float()[:, None] * frequencies).double()[:, None]
    turn = torch.polar(torch.ones_like(angles), angles)
    limit = 8e-3 if dtype == BF16 else 1e-6
    return {
        "result": (_relative(out.detach(), _turn(heads, turn)), limit),
        "gradient": (_relative(gradient, _turn(upstream, turn.conj())), limit),
    }


def _turn(heads: Tensor, turn: Tensor) -> Tensor:
    real, imaginary = heads.double().chunk(2, -1)
    turned = torch.complex(real, imaginary) * turn
    return torch.cat((turned.real, turned.imag), -1)


def _value_errors(found: Any, expected: tuple[Tensor, Tensor, Tensor], limit: float) -> dict[str, tuple[float, float]]:
    """Log-probs relative to 1 + |value|: they may be as large as the logits."""
    logp, entropy, expected_q = expected
    return {
        "logp": (float(((found.logp_T.double() - logp).abs() / (1 + logp.abs())).max()), limit),
        "entropy": (float((found.entropy_T.double() - entropy).abs().max()), limit),
        "expected q": (float((found.expected_q_T.double() - expected_q).abs().max()), limit),
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-300))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bind(function: Any, *args: Any, **options: Any) -> Any:
    return lambda: function(*args, **options)
