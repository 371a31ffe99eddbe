"""From scored rollouts to what each data-parallel rank trains on. Pure."""

from collections.abc import Sequence

from megarl.config.run import RunConfig
from megarl.objective.aggregation import aggregation_weights
from megarl.objective.contexts import number_contexts
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.parallel.packing import pack, plan_micro_batches, stream_length
from megarl.records import Sample


def shard_step(samples: Sequence[Sample], config: RunConfig) -> list[BatchShard]:
    """Cut a step's samples into mini-batches in order, each spread over the data-parallel ranks.

    Samples of one prompt are neighbours, so a group lies in one mini-batch when the sizes divide. Weights count the
    whole mini-batch, so the loss does not depend on the number of ranks or micro-batches.
    """
    size = config.train.mini_batch_responses
    shards: list[list[MiniBatch]] = [[] for _ in range(config.parallel.data)]
    for start in range(0, len(samples), size):
        mini = samples[start : start + size]
        weights = aggregation_weights(
            config.objective.aggregation,
            [len(sample.response) for sample in mini],
            norm_length=config.rollout.max_response_tokens,
        )
        for data_rank, batches in enumerate(shard_mini_batch(mini, weights, config, first_id=start)):
            shards[data_rank].append(batches)
    return [tuple(shard) for shard in shards]


def shard_for_scoring(samples: Sequence[Sample], config: RunConfig) -> list[BatchShard]:
    """Samples that are only scored, any number of them, as one mini-batch; sample ids count from 0.

    Every data-parallel rank needs equally many micro-batches and none may be empty, so samples are repeated up to a
    multiple of the ranks; the ids of the repeats follow those of the samples.
    """
    repeats = -len(samples) % config.parallel.data
    padded = [samples[i % len(samples)] for i in range(len(samples) + repeats)]
    return [(mini,) for mini in shard_mini_batch(padded, [0.0] * len(padded), config, first_id=0)]


def shard_mini_batch(
    samples: Sequence[Sample], weights: Sequence[float], config: RunConfig, *, first_id: int
) -> list[MiniBatch]:
    """Packed micro-batches of one mini-batch for every data-parallel rank; sample ids count from `first_id`."""
    plan = plan_micro_batches(
        [stream_length(sample) for sample in samples],
        data_ranks=config.parallel.data,
        max_tokens=config.policy.tokens_per_micro_batch,
    )
    contexts = number_contexts(samples)
    multiple = config.parallel.tensor if config.parallel.sequence else 1
    return [
        tuple(
            pack(
                [samples[i] for i in indexes],
                [weights[i] for i in indexes],
                pad_to_multiple=multiple,
                sample_ids=[first_id + i for i in indexes],
                contexts=[contexts[i] for i in indexes],
            )
            for indexes in micro_batches
        )
        for micro_batches in plan
    ]
