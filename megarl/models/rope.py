"""Rotary frequencies of a model shape."""

import math

import torch
from torch import Tensor

from megarl.models.shape import Llama3RopeScaling, ModelShape


def rope_inverse_frequencies(shape: ModelShape) -> Tensor:
    """Inverse frequencies [head_dim / 2], float32, scaled as config.json says.

    Llama 3 (arXiv 2407.21783, and the rope type "llama3"): wavelengths above original / low are stretched by `factor`,
    those below original / high are kept, in between they are blended. Linear: every frequency is divided by `factor`.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    if not isinstance(scaling, Llama3RopeScaling):
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_max_positions / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
