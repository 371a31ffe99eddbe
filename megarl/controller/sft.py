"""Supervised warm start: the same policy, trained on the data set's own answers."""

from collections.abc import Mapping, Sequence

from megarl.config.run import RunConfig, SftConfig
from megarl.controller.batching import shard_mini_batch
from megarl.controller.progress import RunProgress
from megarl.controller.protocols import PolicyGroup
from megarl.controller.reporting import StepReporter
from megarl.data.sampler import PromptSampler
from megarl.data.sft import Pair
from megarl.records import Sample, as_tokens
from megarl.telemetry.state import StateOwner


async def fine_tune(
    config: RunConfig,
    sft: SftConfig,
    *,
    policy: PolicyGroup,
    pairs: Sequence[Pair],
    reporter: StepReporter,
    progress: RunProgress | None = None,
) -> None:
    """Token-mean cross-entropy on the answers up to update `sft.steps`, then the export.

    progress: as of `controller.loop.train`.
    """
    sampler = PromptSampler(len(pairs), sft.batch_examples, seed=config.train.seed, shuffle=config.data.shuffle)
    owners: Mapping[str, StateOwner] = {"sampler": sampler, "reporter": reporter}
    if progress is not None:
        progress.restore(owners, steps=sft.steps)
    for step in range(1 if progress is None else progress.step + 1, sft.steps + 1):
        with reporter.spans.measure("step", step=step):
            samples = [as_sample(pairs[index]) for index in sampler.next_batch()]
            answer_tokens = sum(len(sample.response) for sample in samples)
            shards = shard_mini_batch(samples, [1.0 / answer_tokens] * len(samples), config, first_id=0)
            with reporter.spans.measure("update"):
                update = await policy.sft_update(shards)
        num_tokens = sum(sample.length for sample in samples)
        # The mean log-prob of the answer tokens is minus their cross-entropy.
        reporter.report_sft(step, loss=-update.logp.value, metrics=update.metrics, num_tokens=num_tokens)
        if step == sft.steps:
            await policy.export_hf(str(reporter.export_path(step)))
        reporter.commit(RunProgress.collect(owners, step=step, policy_version=step))
        await reporter.settle()


def as_sample(pair: Pair) -> Sample:
    """A pair as a training sample; nobody sampled it, so it has no behaviour log-probs."""
    prompt, answer = pair
    return Sample(prompt=as_tokens(prompt), response=as_tokens(answer), advantage=1.0)
