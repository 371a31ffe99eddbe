"""Rotary frequencies of a model shape."""

import math

import torch
from torch import Tensor

from megarl.models.rope_parameters import LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling
from megarl.models.shape import ModelShape


def rope_inverse_frequencies(shape: ModelShape) -> Tensor:
    """Inverse frequencies [head_dim / 2], float32, scaled as config.json says: bit for bit those of transformers."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    match shape.rope_scaling:
        case None:
            return frequencies
        case LinearRopeScaling(factor=factor):
            return frequencies / factor
        case Llama3RopeScaling() as llama3:
            return _scale_llama3(frequencies, llama3)
        case YarnRopeScaling() as yarn:
            return _scale_yarn(shape, yarn)


def attention_scale(shape: ModelShape) -> float | None:
    """What attention multiplies its logits by, where that is not 1 / sqrt(head_dim); else None.

    YaRN makes rotated queries and keys `attention_factor` times as long. Whole heads are rotated, so that the logits
    grow by its square, and Transformer Engine's fused rotation, which knows no such factor, stays usable.
    """
    scaling = shape.rope_scaling
    if not isinstance(scaling, YarnRopeScaling) or scaling.attention_factor == 1.0:
        return None
    return float(scaling.attention_factor**2 * shape.head_dim**-0.5)


def _scale_llama3(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Llama 3 (arXiv 2407.21783): wavelengths above original / low are stretched by `factor`, those below
    original / high are kept, in between they are blended."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_max_positions / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _scale_yarn(shape: ModelShape, scaling: YarnRopeScaling) -> Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): frequencies that turn more than beta_fast times over the original length
    are kept, those that turn less than beta_slow times are divided by `factor`, with a ramp over the dimensions in
    between."""
    base, dim = shape.rope_theta, shape.head_dim

    def dimension(rotations: float) -> float:
        """The (real) dimension whose frequency turns so often over the original length."""
        return (dim * math.log(scaling.original_max_positions / (rotations * 2 * math.pi))) / (2 * math.log(base))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0.0, 1.0)
    kept = 1 - ramp
    wavelengths = base ** (torch.arange(0, dim, 2).float() / dim)
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
