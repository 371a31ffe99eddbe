"""The RL loop. One coroutine; it knows Protocols, not Ray.

Step: propose prompts -> generate -> score -> advantages -> old and reference log-probs -> K mini-batch updates ->
publish weights. `policy_version` is the number of finished steps whose updates the weights contain. What one step hands
to the next lies with the owners in `Parts` and with the policy ranks; `RunProgress` collects the former after a step.

Who waits for whom, time from left to right:

    engines     |generate ........|                                         |adopt|generate ...
    decoding,     |. . . . . . . . .|
    rewards       |. . . . . . . . .|                                                |. . .
    policy                          |old_logp|update 0|update 1| .. |publish|   (one update a step: no old_logp)
    driver                      pack|        |checks                              report|
    files       |step before: rollouts, metrics, state|                                 |this step's ...
    checkpoint  |of the step before, where one was due ......|                        |copy|write ...
    evaluation                                                                         (|engines, rewards|, where due)

Where both have the same GPUs they take turns (`controller.turns`): between the lines above engines sleep and wake.

A response is decoded and verified when it has come. Long work of the driver's own runs in threads, so that the event
loop hears the workers meanwhile (perf/loop_stall_max). A step's files are written beside the next step, in the order in
which they may be believed: rollouts, metrics, state, and a state only after the export that was due. The next step
waits for them. A checkpoint holds a step whose files are written; the next step waits while the ranks' state is copied
(`controller.checkpoints`).
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from megarl.config.run import RunConfig
from megarl.controller.experts import add_expert_logps
from megarl.controller.parts import Parts
from megarl.controller.progress import RunProgress
from megarl.controller.publication import publish_weights
from megarl.controller.reporting import StepRecord
from megarl.controller.run_evaluation import evaluate_after, evaluate_start
from megarl.controller.sampling import Group, sample_groups
from megarl.controller.updating import train_on
from megarl.objective.advantage import AdvantageHistory, compute_advantages
from megarl.objective.averages import AdvantageAverages
from megarl.records import Rollout, Sample, TokenTrace
from megarl.telemetry.garbage import ManualCollection
from megarl.telemetry.stalls import StallWatch


async def train(config: RunConfig, parts: Parts, *, progress: RunProgress | None = None) -> None:
    """Run to step `config.train.steps`; raises what a part raises, and RunStoppedError where the run was asked to stop
    before.

    progress: where an earlier run stopped; this one goes on as that would have, if the policy ranks have loaded their
    states of then. ValueError where the parts refuse it.
    """
    if (parts.experts is not None) != config.objective.auxiliary.reads("expert"):
        raise ValueError("Parts.experts holds the data set's answers where objective.auxiliary.guided is on, else None")
    reached = progress or RunProgress()
    if progress is not None:
        progress.restore(parts.owners, steps=config.train.steps)
    await parts.checkpoints.listen()
    try:
        as_read = progress is None and not (parts.turns.shared or config.rollout.starts_without_weights)
        if not as_read and reached.step < config.train.steps:
            # The engines have read the weights that the run began with, if any, and have lost them where they slept.
            with parts.reporter.start_up(f"weights of step {reached.step}"):
                await publish_weights(reached.policy_version, parts)
        if not reached.step:
            await evaluate_start(config, parts)
        with ManualCollection() as garbage:
            async with StallWatch() as stalls:
                while reached.step < config.train.steps:
                    reached = await _train_and_report(reached, config, parts, stalls, garbage)
    except BaseException as error:
        # What ended the run is told, not what became of the last step's files for the same reason.
        with suppress(Exception):
            await parts.reporter.settle()
        await (parts.checkpoints.settle() if isinstance(error, Exception) else parts.checkpoints.abandon())
        raise
    await parts.reporter.settle()
    await parts.checkpoints.settle()


async def _train_and_report(
    reached: RunProgress, config: RunConfig, parts: Parts, stalls: StallWatch, garbage: ManualCollection
) -> RunProgress:
    """The step after those reached; where the run is then."""
    step, version = reached.step + 1, reached.policy_version + 1
    with parts.reporter.spans.measure("step", step=step):
        record = await train_step(step, config, parts, version=version)
        with parts.reporter.phase("write_wait"):
            await parts.reporter.settle()
    evaluated = await evaluate_after(step, config, parts)
    record = replace(record, metrics=record.metrics | evaluated | stalls.collect())
    await parts.reporter.report(record)
    # The objects that the responses were go first: all that lives is walked, and everything waits. What waits for the
    # loop has its turn before, between and after.
    await asyncio.sleep(0)
    del record
    await asyncio.sleep(0)
    garbage.collect()
    await asyncio.sleep(0)
    if export_due(step, config):
        await parts.policy.export_hf(str(parts.reporter.export_path(step)))
    stop = parts.checkpoints.stop_reason()
    if stop is not None or parts.checkpoints.due(step):
        reached = await parts.checkpoints.save(step, version, parts)
        stop = stop or parts.checkpoints.asked_to_stop  # meanwhile
    else:
        reached = RunProgress.collect(parts.owners, step=step, policy_version=version)
    parts.reporter.commit(reached)
    if stop is not None and step < config.train.steps:
        raise await parts.checkpoints.stopped(step, stop)
    return reached


def export_due(step: int, config: RunConfig) -> bool:
    """Whether the weights are exported after `step`: every train.export_every steps, and always after the last."""
    every = config.train.export_every
    return step == config.train.steps or (every > 0 and step % every == 0)


async def train_step(step: int, config: RunConfig, parts: Parts, *, version: int) -> StepRecord:
    """One step, from prompts to weights published as `version`."""
    report = parts.reporter
    groups, sampled = await sample_groups(step, config, parts)
    turned = await parts.turns.to_policy()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    samples = await asyncio.to_thread(make_samples, groups, config, parts.history, parts.controllers.averages)
    if parts.experts is not None:
        prompts = [group.prompt for group in groups for _ in group.rollouts]
        with report.phase("old_logp"):
            samples = await add_expert_logps(
                samples, prompts, experts=parts.experts, policy=parts.policy, config=config
            )
    trained = await train_on(step, samples, rollouts, config=config, parts=parts)
    with report.phase("publish"):
        published = await publish_weights(version, parts) | parts.engine_losses.collect() | turned
    return StepRecord(
        step=step,
        policy_version=version,
        items=[item for group in groups for item in group.items],
        rollouts=rollouts,
        samples=samples,
        scores=[score for group in groups for score in group.scores],
        token_scores=trained.token_scores,
        traces=trained.traces,
        token_texts=await asyncio.to_thread(_token_texts, rollouts, trained.traces, parts),
        metrics=trained.metrics | parts.controllers.metrics() | sampled | trained.difference.metrics() | published,
    )


def _token_texts(rollouts: Sequence[Rollout], traces: Sequence[TokenTrace], parts: Parts) -> dict[int, tuple[str, ...]]:
    tokens = {trace.sample_id: rollouts[trace.sample_id].response.tolist() for trace in traces}
    texts = {token: parts.token_text(token) for token in set(chain.from_iterable(tokens.values()))}
    return {sample_id: tuple(map(texts.__getitem__, of_response)) for sample_id, of_response in tokens.items()}


def make_samples(
    groups: Sequence[Group], config: RunConfig, history: AdvantageHistory, averages: AdvantageAverages
) -> list[Sample]:
    """Training samples in the groups' order, with advantages; `history` remembers the problems' rewards, `averages` the
    means over the run."""
    scores = [score for group in groups for score in group.scores]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scales = [bonus_scale(group, config) for group in groups for _ in group.rollouts]
    rewards = [score.reward for score in scores]
    group_ids = [group.position for group in groups for _ in group.rollouts]
    advantages = compute_advantages(
        config.objective.advantage,
        rewards,
        group_ids,
        response_lengths=[len(rollout.response) for rollout in rollouts],
        problems=[group.prompt.identity for group in groups for _ in group.rollouts],
        history=history,
        focal_power=averages.focal_power(rewards),
    )
    advantages = averages.attenuate(advantages, group_ids, [rollout.behavior_logp for rollout in rollouts])
    return [
        Sample(
            prompt=rollout.prompt,
            response=rollout.response,
            behavior_logp=rollout.behavior_logp,
            advantage=advantage,
            correct=bool(score.correct),
            entropy_scale=scale,
        )
        for rollout, score, advantage, scale in zip(rollouts, scores, advantages, scales, strict=True)
    ]


def bonus_scale(group: Group, config: RunConfig) -> float:
    """AER-style factor of the entropy bonus on a prompt's responses: max(0, (rho - g) / rho), g the share of the group
    that is correct (where the verifier knows no right and wrong: its mean within [0, 1]); 1 without that controller. A
    reconstruction, see `AerStyleCoefficient`."""
    aer = config.objective.controllers.aer
    if aer is None:
        return 1.0
    verdicts = [score.verifier if score.correct is None else float(score.correct) for score in group.scores]
    mean = sum(verdicts) / len(verdicts)
    return max(0.0, (aer.rho - min(max(mean, 0.0), 1.0)) / aer.rho)
