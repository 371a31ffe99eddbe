"""What a configuration says that is legal and probably not meant. `train`, `sft`, `show` and `doctor` print it."""

from collections.abc import Callable, Iterator

from megarl.config.data import ReasoningGymData
from megarl.config.facts import Distance, LargestWeight, marked_fields
from megarl.config.run import RunConfig


def find_warnings(config: RunConfig) -> list[str]:
    """One line per suspicion: the key, what it does as it stands, what was probably meant."""
    return [text for check in _CHECKS for text in check(config)]


def _distances_like_ratios(config: RunConfig) -> Iterator[str]:
    """A bound is a distance from 1 in most papers (0.28) and a ratio in others (1.28)."""
    for path, section in config.objective.variants.items():
        for name, distance, mark in marked_fields(section, Distance):
            if 1 < distance < 2:
                of_log = mark.of == "log ratio"
                what = "of the log ratio from 0" if of_log else "from 1: ratios are clipped"
                reach = "" if of_log else f" above {1 + distance:g}"
                yield (
                    f"objective.{path}.{name} {distance:g} is the distance {what}{reach}; did you mean "
                    f"{distance - 1:.4g}? inf turns the side off"
                )


def _ratios_like_distances(config: RunConfig) -> Iterator[str]:
    """The other way round: a cap is a ratio."""
    for path, section in config.objective.variants.items():
        for name, cap, _ in marked_fields(section, LargestWeight):
            if cap < 1:
                yield (
                    f"objective.{path}.{name} {cap:g} is a ratio, so no weight is more than {cap:g}; did you mean "
                    f"{1 + cap:g}?"
                )


def _min_lr_unread(config: RunConfig) -> Iterator[str]:
    optimizers = {"policy.optimizer": config.policy.optimizer}
    if config.sft:
        optimizers["sft.optimizer"] = config.sft.optimizer
    for path, optimizer in optimizers.items():
        if optimizer.min_lr and optimizer.schedule == "constant":
            yield (
                f'{path}.min_lr {optimizer.min_lr:g} is not read by {path}.schedule "constant"; did you mean "cosine"?'
            )


def _idle_gpus(config: RunConfig) -> Iterator[str]:
    used, gpus = config.rollout.engines * config.rollout.tensor, config.parallel.world_size
    if config.cluster.colocate and used < gpus:
        yield (
            f"rollout.engines {config.rollout.engines} x tensor {config.rollout.tensor} share {used} of the policy's "
            f"{gpus} GPUs (cluster.colocate); the others idle while engines sample"
        )


def _benchmarks_of_training_problems(config: RunConfig) -> Iterator[str]:
    """reasoning-gym makes problem i of seed s from s + i: of neighbouring seeds nearly all problems are the same."""
    train = config.data.train
    if not isinstance(train, ReasoningGymData):
        return
    for name, data in ((name, benchmark.data) for name, benchmark in config.eval.benchmarks.items()):
        if not isinstance(data, ReasoningGymData) or (data.task, data.options) != (train.task, train.options):
            continue
        shared = min(data.seed + data.size, train.seed + train.size) - max(data.seed, train.seed)
        if shared > 0:
            yield (
                f"eval.benchmarks.{name}.data: {shared} of its {data.size} problems are among those of data.train; "
                f"a seed from {train.seed + train.size} on has others"
            )


_CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _distances_like_ratios,
    _ratios_like_distances,
    _min_lr_unread,
    _idle_gpus,
    _benchmarks_of_training_problems,
)
