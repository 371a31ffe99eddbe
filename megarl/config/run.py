"""The whole configuration of a run, and the rules that span sections."""

from typing import Self

from pydantic import Field, model_validator

from megarl.config.base import Config, ConfigError
from megarl.config.data import DataConfig, RewardConfig
from megarl.config.objective import ObjectiveConfig
from megarl.config.policy import ModelConfig, OptimizerConfig, ParallelConfig, PolicyConfig
from megarl.config.rollout import RolloutConfig


class TrainConfig(Config):
    steps: int = Field(100, ge=1)
    """RL steps: one batch of rollouts each."""
    prompts_per_step: int = Field(512, ge=1)
    samples_per_prompt: int = Field(8, ge=1)
    """Responses per prompt: the group of the advantage."""
    mini_batch_responses: int = Field(256, ge=1)
    """Responses per optimizer update; prompts x samples / this = updates per rollout batch."""
    seed: int = 0
    """Seeds the sampler, the rollouts and the random rewards."""
    export_every: int = Field(0, ge=0)
    """Write a Hugging Face checkpoint every so many steps; 0: only after the last."""

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


class SftConfig(Config):
    """Supervised warm start on the data set's own answers (`megarl sft`)."""

    steps: int = Field(ge=1)
    batch_examples: int = Field(ge=1)
    """Examples per optimizer update; the loss is the mean over the answers' tokens."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)


class ClusterConfig(Config):
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(8, ge=1)
    """Read only where CUDA is present."""
    colocated: bool = False
    """CUDA: engines share the policy's GPUs (vLLM sleeps while the policy trains) instead of having their own."""
    ray_address: str | None = None
    """Join a running Ray cluster ("auto" or host:port) instead of starting one on this machine."""


class LoggingConfig(Config):
    directory: str = "runs"
    """Run directories are made below this."""
    rollouts_every: int = Field(1, ge=0)
    """Write rollouts/step-N.parquet every so many steps; 0: never."""
    wandb_project: str | None = None
    """Log to Weights & Biases; offline when there is no login."""
    tensorboard: bool = False


class RunConfig(Config):
    """One file configures `megarl sft` and `megarl train`; what a verb does not need it does not read."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Names the run directory."""
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    parallel: ParallelConfig = ParallelConfig()
    policy: PolicyConfig = PolicyConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _rules_across_sections(self) -> Self:
        problems = [text for check in _CHECKS if (text := check(self))]
        if problems:
            raise ConfigError("\n".join(problems))
        return self


def _check_data_ranks(config: RunConfig) -> str | None:
    try:
        data_ranks = config.parallel.data
        config.train.updates_per_step  # noqa: B018  (raises)
    except ConfigError as error:
        return str(error)
    if config.train.mini_batch_responses < data_ranks:
        return (
            f"train.mini_batch_responses {config.train.mini_batch_responses} is below the {data_ranks} data-parallel "
            "ranks; every rank needs a response"
        )
    return None


def _check_sequence(config: RunConfig) -> str | None:
    if config.parallel.sequence and config.parallel.tensor == 1:
        return "parallel.sequence needs parallel.tensor > 1; set it to false"
    return None


def _check_gpus(config: RunConfig) -> str | None:
    gpus = config.cluster.nodes * config.cluster.gpus_per_node
    rollout = config.rollout.engines * config.rollout.tensor
    policy = config.parallel.world_size
    needed = max(policy, rollout) if config.cluster.colocated else policy + rollout
    if needed > gpus:
        how = "max(policy, rollout)" if config.cluster.colocated else "policy + rollout"
        return (
            f"parallel.world_size {policy} and rollout.engines x tensor = {rollout} need {needed} GPUs ({how}), "
            f"cluster.nodes x gpus_per_node = {gpus}"
        )
    if config.rollout.tensor > config.cluster.gpus_per_node:
        return f"rollout.tensor {config.rollout.tensor} is larger than cluster.gpus_per_node; an engine lives on one node"
    return None


def _check_overlong(config: RunConfig) -> str | None:
    overlong = config.reward.overlong
    if overlong and overlong.cache_tokens >= config.rollout.max_response_tokens:
        return (
            f"reward.overlong.cache_tokens {overlong.cache_tokens} must be below rollout.max_response_tokens "
            f"{config.rollout.max_response_tokens}"
        )
    return None


def _check_reward_matches_data(config: RunConfig) -> str | None:
    if config.reward.verifier.kind == "reasoning_gym" and config.data.train.source != "reasoning_gym":
        return 'reward.verifier.kind = "reasoning_gym" scores only data.train.source = "reasoning_gym"'
    return None


_CHECKS = (_check_data_ranks, _check_sequence, _check_gpus, _check_overlong, _check_reward_matches_data)
