"""The whole configuration of a run, and the rules that span sections."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from megarl.config.advantage import Advantage, DynamicSampling, Sampler
from megarl.config.base import Config, ConfigError, raise_problems
from megarl.config.checkpoint import CheckpointConfig
from megarl.config.cluster import ClusterConfig, fill_with_engines
from megarl.config.data import DataConfig
from megarl.config.evaluation import EvalConfig
from megarl.config.facts import MayChange, join_or, tags_where
from megarl.config.objective import ObjectiveConfig
from megarl.config.policy import ModelConfig, OptimizerConfig, ParallelConfig, PolicyConfig
from megarl.config.reward import RewardConfig, Verifier
from megarl.config.rollout import RolloutConfig


class TrainConfig(Config):
    """Sizes and length of the RL run."""

    steps: Annotated[int, MayChange("length")] = Field(100, ge=1)
    """RL steps: one batch of rollouts each."""
    prompts_per_step: int = Field(512, ge=1)
    """Prompts of one batch of rollouts."""
    samples_per_prompt: int = Field(8, ge=1)
    """Responses per prompt: the group of the advantage."""
    mini_batch_responses: int = Field(256, ge=1)
    """Responses per optimizer update; prompts x samples / this = updates per rollout batch."""
    seed: int = Field(0, ge=0)
    """Seeds the sampler, the rollouts and the random rewards."""
    export_every: Annotated[int, MayChange()] = Field(0, ge=0)
    """Write a Hugging Face checkpoint every so many steps; 0: only after the last."""
    init_from: Annotated[str | None, MayChange()] = None
    """A checkpoint of a run (RUN/checkpoints/step-000012, or RUN for its newest): this run begins with its weights and
    an optimizer of its own. model.path still says what model it is, and has the tokenizer."""

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def updates_per_step(self) -> int:
        """K, the optimizer updates per rollout batch."""
        if self.responses_per_step % self.mini_batch_responses:
            raise ConfigError(
                f"train.prompts_per_step {self.prompts_per_step} x samples_per_prompt {self.samples_per_prompt} = "
                f"{self.responses_per_step} responses are not a multiple of mini_batch_responses "
                f"{self.mini_batch_responses}"
            )
        return self.responses_per_step // self.mini_batch_responses


class SftOptimizerConfig(OptimizerConfig):
    """AdamW of the warm start."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""


class SftConfig(Config):
    """Supervised warm start on the data set's own answers (`megarl sft`)."""

    steps: int = Field(ge=1)
    """Optimizer updates."""
    batch_examples: int = Field(ge=1)
    """Examples per optimizer update; the loss is the mean over the answers' tokens."""
    optimizer: SftOptimizerConfig = SftOptimizerConfig()


class LoggingConfig(Config):
    """What a run writes and where."""

    directory: str = "runs"
    """Run directories are made below this."""
    rollouts_every: int | None = Field(None, ge=0)
    """Write rollouts/step-N.parquet every so many steps; 0: never; absent: as often as 20 GB for the whole run allow if
    every response is as long as it may be, every step where they do. `megarl show` says which."""
    traced_responses: int = Field(256, ge=0)
    """Responses of a step whose parquet rows say what training did with each token: as many of every mini-batch, its
    first; 0: none."""
    wandb_project: str | None = None
    """Log to Weights & Biases; offline when there is no login."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run directory."""


class RunConfig(Config):
    """One file configures `megarl sft`, `train` and `eval`; what a verb does not need it does not read."""

    name: Annotated[str, MayChange()] = Field(pattern=r"^[\w.-]+$")
    """Names the run directory."""
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    parallel: Annotated[ParallelConfig, MayChange("rounding")] = ParallelConfig()
    policy: PolicyConfig = PolicyConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    sft: Annotated[SftConfig | None, MayChange()] = None
    eval: Annotated[EvalConfig, MayChange()] = EvalConfig()
    checkpoint: Annotated[CheckpointConfig, MayChange()] = CheckpointConfig()
    cluster: Annotated[ClusterConfig, MayChange()] = ClusterConfig()
    logging: Annotated[LoggingConfig, MayChange()] = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_gpus(cls, values: Any) -> Any:
        return fill_with_engines(values)

    @model_validator(mode="after")
    def _rules_across_sections(self) -> Self:
        return raise_problems(self, _CHECKS)

    @property
    def eval_tokens(self) -> int:
        """Longest response of an evaluation."""
        return self.eval.max_tokens or self.rollout.max_response_tokens

    @property
    def gpus_needed(self) -> int:
        """GPUs of policy and engines together; those that they share count once."""
        engines = 0 if self.cluster.colocate else self.rollout.engines * self.rollout.tensor
        return self.parallel.world_size + engines

    @property
    def follows_length(self) -> tuple[str, ...]:
        """The fields by which a step's numbers depend on train.steps."""
        cosine = self.policy.optimizer.schedule == "cosine"
        return (*(["policy.optimizer.schedule"] if cosine else []), *self.objective.follows_length)

    @property
    def scores_in_update(self) -> bool:
        """Whether the old log-probs are those of the update's own forward: in the only update of a step the policy is
        the old one, so a pass of their own would compute the same numbers twice."""
        return self.train.updates_per_step == 1 and not self.objective.scores_first


def _check_ranks_and_batch(config: RunConfig) -> Iterator[str]:
    data_ranks: int | None = None
    try:
        data_ranks = config.parallel.data
    except ConfigError as error:
        yield str(error)
    try:
        config.train.updates_per_step  # noqa: B018  (raises)
    except ConfigError as error:
        yield str(error)
    if data_ranks and config.train.mini_batch_responses % data_ranks:
        yield (
            f"train.mini_batch_responses {config.train.mini_batch_responses} is not a multiple of the {data_ranks} "
            "data-parallel ranks; every rank takes equally many micro-batches"
        )
    if data_ranks and config.sft and config.sft.batch_examples % data_ranks:
        yield (
            f"sft.batch_examples {config.sft.batch_examples} is not a multiple of the {data_ranks} data-parallel ranks"
        )


def _check_sequence(config: RunConfig) -> Iterator[str]:
    if config.parallel.sequence and config.parallel.tensor == 1:
        yield "parallel.sequence needs parallel.tensor > 1; set it to false"


def _check_gpus(config: RunConfig) -> Iterator[str]:
    gpus = config.cluster.nodes * config.cluster.gpus_per_node
    rollout = config.rollout.engines * config.rollout.tensor
    if config.gpus_needed > gpus:
        engines = "" if config.cluster.colocate else f" and rollout.engines x tensor = {rollout}"
        yield (
            f"parallel.world_size {config.parallel.world_size}{engines} need{'' if engines else 's'} "
            f"{config.gpus_needed} GPUs, cluster.nodes x gpus_per_node = {gpus}"
        )
    if config.rollout.tensor > config.cluster.gpus_per_node:
        yield (
            f"rollout.tensor {config.rollout.tensor} is larger than cluster.gpus_per_node "
            f"{config.cluster.gpus_per_node}; an engine lives on one node"
        )


def _check_colocation(config: RunConfig) -> Iterator[str]:
    cluster, rollout, gpus = config.cluster, config.rollout, config.parallel.world_size
    if not cluster.colocate:
        if cluster.offload is not None:
            yield "cluster.offload says what moves while engines share the policy's GPUs; set cluster.colocate = true"
        return
    if rollout.engines * rollout.tensor > gpus:
        yield (
            f"rollout.engines {rollout.engines} x tensor {rollout.tensor} take {rollout.engines * rollout.tensor} "
            f"GPUs, but with cluster.colocate they share the {gpus} of the policy (parallel.world_size); lower one of "
            "the two, or leave rollout.engines out"
        )
    if rollout.publish.staging == "device":
        yield (
            'rollout.publish.staging "device" keeps a second copy of an engine\'s weights on a GPU that '
            'cluster.colocate shares; set it to "host", or on one node to "none"'
        )
    if "reference" in (cluster.offload or ()) and not config.objective.auxiliary.reads("reference"):
        yield 'cluster.offload names "reference", but the objective has no KL, so there is none; leave it out'


def _check_transport(config: RunConfig) -> Iterator[str]:
    publish = config.rollout.publish
    if config.cluster.nodes > 1 and publish.transport == "shared_memory":
        yield (
            f'rollout.publish.transport "shared_memory" works within one node, cluster.nodes is {config.cluster.nodes};'
            ' set it to "network"'
        )
    if publish.staging == "none":
        if not config.cluster.colocate:
            yield (
                'rollout.publish.staging "none" lets engines read the weights of a policy that rests meanwhile, which '
                'it does with cluster.colocate alone; set it to "host" or "device"'
            )
        if publish.transport == "network":
            yield (
                'rollout.publish.staging "none" reads the policy\'s memory within one node, and a network is for '
                'several; set transport to "shared_memory" or staging to "host"'
            )
    if publish.delta and publish.transport == "shared_memory":
        yield (
            'rollout.publish.delta spares a network, but with transport "shared_memory" weights cross none; set '
            'transport to "network" or delta to false'
        )


def _check_overlap(config: RunConfig) -> Iterator[str]:
    policy = config.policy
    if policy.overlap == "all" and not policy.distributed_optimizer:
        yield (
            'policy.overlap "all" gathers the weights that the distributed optimizer has split, and '
            'policy.distributed_optimizer is false; set it to true, or overlap to "gradients"'
        )
    if policy.overlap == "off" and policy.bucket_elements is not None:
        yield 'policy.bucket_elements cuts what overlaps, and policy.overlap is "off"; leave it out'


def _check_optimizers(config: RunConfig) -> Iterator[str]:
    train, sft = config.train, config.sft
    per_step = train.responses_per_step / train.mini_batch_responses
    length = f"train.steps {train.steps} x {per_step:g} updates per step"
    optimizers = [("policy.optimizer", config.policy.optimizer, train.steps * per_step, length)]
    if sft:
        optimizers.append(("sft.optimizer", sft.optimizer, sft.steps, f"sft.steps {sft.steps}"))
    for path, optimizer, updates, length in optimizers:
        if optimizer.schedule == "cosine" and optimizer.min_lr > optimizer.lr:
            yield f"{path}.min_lr {optimizer.min_lr} is above lr {optimizer.lr}; the cosine falls from lr to min_lr"
        if optimizer.warmup_updates >= updates:
            yield (
                f"{path}.warmup_updates {optimizer.warmup_updates} leaves no update after the warm-up: the run has "
                f"{updates:g} ({length}); warm up for fewer, or train longer"
            )


def _check_overlong(config: RunConfig) -> Iterator[str]:
    overlong = config.reward.overlong
    longest = config.rollout.max_response_tokens
    if overlong and overlong.cache_of(longest) >= longest:
        yield (
            f"reward.overlong.cache_tokens {overlong.cache_of(longest)} must be below rollout.max_response_tokens "
            f"{longest}"
        )


def _check_truncation(config: RunConfig) -> Iterator[str]:
    if config.reward.overlong and config.reward.truncated_factor != 1:
        yield (
            f"reward.overlong and reward.truncated_factor {config.reward.truncated_factor:g} both punish a response "
            "that reaches the limit; keep one: reward.overlong=false or reward.truncated_factor=1.0"
        )


def _check_group_size(config: RunConfig) -> Iterator[str]:
    advantage = config.objective.advantage
    if config.train.samples_per_prompt == 1 and advantage.compares_group:
        yield (
            f'objective.advantage.method "{advantage.method}" compares the responses to one prompt, but '
            "train.samples_per_prompt is 1 and every advantage would be 0; sample more, or use "
            f"{join_or(tags_where(Advantage, compares_group=False))}"
        )


def _check_dynamic_sampling(config: RunConfig) -> Iterator[str]:
    sampler, wanted = config.objective.sampler, config.train.prompts_per_step
    prompts = sampler.prompts_per_generation if isinstance(sampler, DynamicSampling) else None
    if isinstance(sampler, DynamicSampling) and prompts is not None and prompts * sampler.max_generations < wanted:
        yield (
            f"objective.sampler.prompts_per_generation {prompts} x max_generations {sampler.max_generations} is below "
            f"train.prompts_per_step {wanted}: no step could be filled; raise one of them"
        )
    if sampler.needs_spread and config.train.samples_per_prompt == 1:
        yield (
            f'objective.sampler.kind "{sampler.kind}" keeps groups whose scores differ, but train.samples_per_prompt '
            f"is 1 and none ever does; sample more, or use kind {join_or(tags_where(Sampler, needs_spread=False))}"
        )


def _check_verdicts(config: RunConfig) -> Iterator[str]:
    """What needs numbers that differ, or a verdict on the answer, from a verifier that does not give it."""
    verifier, sampler = config.reward.verifier, config.objective.sampler
    if sampler.needs_spread and verifier.always_equal:
        yield (
            f'reward.verifier gives every response the same number, and objective.sampler.kind "{sampler.kind}" drops '
            f"such groups: no step could be filled; use kind {join_or(tags_where(Sampler, needs_spread=False))}"
        )
    if verifier.looks_at_answer:
        return
    for name in (name for name, loss in config.objective.auxiliary.on.items() if "verdict" in loss.reads):
        yield (
            f"objective.auxiliary.{name} moves right answers one way and wrong ones the other, but "
            f'reward.verifier.kind "{verifier.kind}" does not look at the answer; use a verifier that does, or remove '
            "the table"
        )


def _check_wrong(config: RunConfig) -> Iterator[str]:
    reward = config.reward
    least = 1.0 if reward.correct_from is None else reward.correct_from
    if reward.wrong is not None and reward.wrong >= least:
        yield (
            f"reward.wrong {reward.wrong:g} is not below reward.correct_from {least:g}: what a wrong answer gets would "
            "be correct; set reward.correct_from to what the verifier gives a right answer"
        )


def _check_rules_that_need_updates(config: RunConfig) -> Iterator[str]:
    """Rules that compare the current policy with the one before the batch's first update."""
    train, objective = config.train, config.objective
    if train.responses_per_step != train.mini_batch_responses:
        return
    comparing = {f"auxiliary.{name}": loss.compares_updates for name, loss in objective.auxiliary.on.items()}
    comparing |= {f"weights.{name}": weight.compares_updates for name, weight in objective.weights.on.items()}
    if objective.ratio.reads_behavior:
        # Bounds of that ratio drop tokens in the first update too, and so does their control.
        comparing["weights.matched"] = False
    else:
        comparing["clip"] = objective.clip.steers
    for path in (path for path, compares in comparing.items() if compares):
        yield (
            f"objective.{path} compares the policy with itself before a batch's first update, but there is one update "
            f"per batch (train.mini_batch_responses {train.mini_batch_responses} = all responses of a step); lower "
            "train.mini_batch_responses, or remove the table"
        )


def _check_reward_matches_data(config: RunConfig) -> Iterator[str]:
    verifier, source = config.reward.verifier, config.data.train.source
    if verifier.only_source not in (None, source):
        others = join_or(tags_where(Verifier, looks_at_answer=True, only_source=None))
        yield (
            f'reward.verifier.kind = "{verifier.kind}" scores only data.train.source = "{verifier.only_source}", found '
            f'"{source}"; use {others}'
        )


def _check_eval_tokens(config: RunConfig) -> Iterator[str]:
    if config.eval_tokens > config.rollout.max_response_tokens:
        yield (
            f"eval.max_tokens {config.eval_tokens} is above rollout.max_response_tokens "
            f"{config.rollout.max_response_tokens}, for which the engines are made; raise that, or lower it"
        )


_CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _check_ranks_and_batch,
    _check_sequence,
    _check_gpus,
    _check_colocation,
    _check_transport,
    _check_overlap,
    _check_optimizers,
    _check_overlong,
    _check_truncation,
    _check_group_size,
    _check_dynamic_sampling,
    _check_verdicts,
    _check_wrong,
    _check_rules_that_need_updates,
    _check_reward_matches_data,
    _check_eval_tokens,
)
