"""Only what changed: positions and values of the elements of a message that differ from the last ones sent.

Compared bit by bit (-0.0 is not 0.0, a NaN equals itself). Positions are coded as gaps, one byte each where they are
below 255 and one more byte for every further 255, then the values follow. At the one to three per cent of bfloat16
weights that an update of RL changes that is 3 bytes a changed element.
"""

import torch
from torch import Tensor

_LONG = 255
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def find_changes(new: Tensor, old: Tensor) -> Tensor:
    """[changed] int64: positions where two contiguous tensors [elements] of one dtype differ in a bit."""
    bits = _BITS[new.dtype.itemsize]
    return (new.view(bits) != old.view(bits)).nonzero().view(-1)


def encoded_bytes_at_least(num_changes: int, itemsize: int) -> int:
    """The fewest bytes `encode_changes` can take."""
    return 8 + num_changes * (1 + itemsize)


def encode_changes(new: Tensor, positions: Tensor) -> Tensor:
    """[bytes] uint8: the number of gap bytes, the gaps, the values of `new` at ascending `positions`."""
    gaps = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
    long = gaps // _LONG
    ends = torch.cumsum(long + 1, 0)
    code = torch.full((int(ends[-1]) if len(ends) else 0,), _LONG, dtype=torch.uint8, device=new.device)
    code[ends - 1] = (gaps % _LONG).to(torch.uint8)
    count = torch.tensor([code.numel()], dtype=torch.int64).view(torch.uint8).to(new.device)
    return torch.cat([count, code, new[positions].view(torch.uint8)])


def apply_changes(elements: Tensor, encoded: Tensor) -> int:
    """Write the encoded values into `elements`, in place; returns how many. Both on one device.

    Raises:
        ValueError: the bytes are no encoding for so many elements; nothing was written.
    """
    num_bytes = encoded.numel()
    count = int(encoded[:8].cpu().view(torch.int64)) if num_bytes >= 8 else -1
    if not 0 <= count <= num_bytes - 8:
        raise ValueError(f"{num_bytes} bytes are no encoded changes: their count of gaps is {count}")
    code = encoded[8 : 8 + count].to(torch.int64)
    steps = torch.where(code == _LONG, _LONG, code + 1)
    positions = (torch.cumsum(steps, 0) - 1)[code != _LONG]
    num_values, ragged = divmod(num_bytes - 8 - count, elements.itemsize)
    unended = count and int(code[-1]) == _LONG
    beyond = positions.numel() and int(positions[-1]) >= elements.numel()
    if ragged or unended or beyond or num_values != positions.numel():
        raise ValueError(
            f"{positions.numel()} positions and {num_values} values for {elements.numel()} elements do not fit"
        )
    elements[positions] = encoded[8 + count :].clone().view(elements.dtype)
    return positions.numel()
