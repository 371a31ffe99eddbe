"""What a data-parallel rank trains on in a step."""

from megarl.parallel.packing import PackedMicroBatch

MiniBatch = tuple[PackedMicroBatch, ...]
"""One optimizer update of one data-parallel rank: micro-batches, as many as on every other rank."""

BatchShard = tuple[MiniBatch, ...]
"""One data-parallel rank's share of a step: its part of every mini-batch, in order."""
