"""Filling parameters from checkpoint boxes, as a table entry says.

Elements are copied, never computed; a dtype changes only where a parameter of another dtype is filled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megarl.models.boxes import Box, ParameterEntry
from megarl.models.shape import ModelError


def fill_parameter(param: Tensor, entry: ParameterEntry, read: Callable[[Box], Tensor]) -> None:
    """Overwrite `param` with its boxes, converted to its dtype and device; vocabulary padding becomes zero.

    `read(box)` returns a tensor of the box's shape. Raises ModelError when the parameter or what was read has another
    shape than the table says: copy_ would broadcast it silently.
    """
    _check_shape(param, entry)
    with torch.no_grad():
        if entry.num_padding:
            param.zero_()
        for piece in entry.pieces:
            values = read(piece.box)
            if tuple(values.shape) != piece.box.shape:
                raise ModelError(
                    f"{entry.name}: expected shape {piece.box.shape} for {piece.box}, found {tuple(values.shape)}; "
                    "the reader must return exactly the box"
                )
            param[piece.slices].copy_(values)


def _check_shape(param: Tensor, entry: ParameterEntry) -> None:
    if tuple(param.shape) != entry.shape:
        raise ModelError(
            f"{entry.name}: expected the local shape {entry.shape}, found {tuple(param.shape)}; was the model built "
            "from the same shape and layout, and with layout.padded_vocab rows of vocabulary?"
        )
