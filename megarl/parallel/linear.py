"""Products with a weight in bfloat16 on a CPU that has no instructions for them.

S = rows, I = inputs, O = outputs. torch multiplies such matrices number by number there; here the factors are converted
to float32, multiplied, and the result is rounded once, which is what kernels for bfloat16 compute. Saved for backward
are the factors as they are, so memory does not grow with the conversion.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megarl.parallel.device import multiplies_bfloat16


def linear(input_SI: Tensor, weight_OI: Tensor) -> Tensor:
    """Input [..., I] times the weight's transpose, [..., O] in the dtype of both; by the faster way on this device."""
    if needs_widening(input_SI):
        return _WidenedLinear.apply(input_SI, weight_OI)
    return F.linear(input_SI, weight_OI)


def needs_widening(tensor: Tensor) -> bool:
    """Whether its products are better computed in float32."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not multiplies_bfloat16()


class _WidenedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_SI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(input_SI, weight_OI)
        return F.linear(input_SI.float(), weight_OI.float()).to(input_SI.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input_SI, weight_OI = ctx.saved_tensors
        wide_SO = grad_SO.float()
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = torch.matmul(wide_SO, weight_OI.float()).to(input_SI.dtype)
        if ctx.needs_input_grad[1]:
            rows_SO, rows_SI = wide_SO.flatten(0, -2), input_SI.flatten(0, -2).float()
            grad_weight = torch.matmul(rows_SO.t(), rows_SI).to(weight_OI.dtype)
        return grad_input, grad_weight
