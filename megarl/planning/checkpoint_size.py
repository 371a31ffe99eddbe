"""How large a run's checkpoints are, and how many of them lie on the disk at a time."""

import math

from megarl.config.run import RunConfig
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors

_MOMENT_BYTES = 8
"""Two in float32."""
_MAIN_BYTES = 4
"""The float32 weights that a model in bfloat16 has besides."""


def checkpoint_bytes(shape: ModelShape, config: RunConfig) -> int:
    """Of one checkpoint's tensors, whatever the layout: also the host memory of all ranks' copies together."""
    itemsize = config.model.itemsize
    each = itemsize + _MOMENT_BYTES + (_MAIN_BYTES if itemsize < _MAIN_BYTES else 0)
    if config.objective.auxiliary.reads("reference"):
        each += itemsize
    return each * _parameters(shape)


def export_bytes(shape: ModelShape, config: RunConfig) -> int:
    """Of one export's tensors, in the model's precision."""
    return config.model.itemsize * _parameters(shape)


def most_checkpoints(config: RunConfig) -> int:
    """As many at a time as there can be: those that are kept, and the one that is being written."""
    return min(_kept(config) + 1, _saved(config))


def left_checkpoints(config: RunConfig) -> int:
    """As many as there can be once the run has ended."""
    return min(_kept(config), _saved(config))


def _kept(config: RunConfig) -> int:
    saving = config.checkpoint
    every = config.train.steps // saving.keep_every_steps if saving.keep_every_steps else 0
    return saving.keep_last + (saving.keep_best is not None) + every


def _saved(config: RunConfig) -> int:
    """In the whole run, at most."""
    saving, steps = config.checkpoint, config.train.steps
    if not saving.on:
        return 0
    by_steps = saving.every_steps > 0 and not saving.every_minutes and saving.end_time is None
    return -(-steps // saving.every_steps) if by_steps else steps


def _parameters(shape: ModelShape) -> int:
    return sum(math.prod(sizes) for sizes in hf_tensors(shape).values())
