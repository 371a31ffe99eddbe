"""What a run's layout and lengths ask of its model.

Invariant: every size that is advised was tried: with it the configuration loads, and the model splits.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from megarl.config.dump import format_value
from megarl.config.run import RunConfig
from megarl.models.geometry import stage_counts, tensor_problems, tensor_sizes
from megarl.models.shape import ModelShape
from megarl.planning.changes import loads

_VIRTUAL = "virtual_pipeline_model_parallel_size"


def check_layout(config: RunConfig, shape: ModelShape) -> Iterator[str]:
    """Problems between a model and the parallel layout, and with the context length; each says what to change."""
    yield from _check_policy(config, shape)
    if _VIRTUAL in config.policy.megatron_overrides:
        yield f"policy.megatron_overrides.{_VIRTUAL}: a policy rank has one model chunk as yet; remove it"
    tensor = config.rollout.tensor
    if problems := tensor_problems(shape, tensor, side="engine"):
        splitting = tensor_sizes(shape, at_most=config.cluster.gpus_per_node, side="engine")
        sizes = [size for size in splitting if loads(config, {"rollout.tensor": size})]
        yield f"rollout.tensor {tensor} does not split the model: {', '.join(problems)}; use {_nearest(sizes, tensor)}"
    prompt, response = config.rollout.max_prompt_tokens, config.rollout.max_response_tokens
    if prompt + response > shape.context_tokens:
        yield (
            f"rollout.max_prompt_tokens {prompt} + max_response_tokens {response} = {prompt + response} is longer than "
            f"the model's context of {shape.context_tokens} (max_position_embeddings); shorten one of them"
        )


def _check_policy(config: RunConfig, shape: ModelShape) -> Iterator[str]:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    texts = {}
    if problems := tensor_problems(shape, tensor, side="policy"):
        texts["tensor"] = f"parallel.tensor {tensor} does not split the model: {', '.join(problems)}"
    if pipeline not in stage_counts(shape):
        texts["pipeline"] = f"parallel.pipeline {pipeline} does not divide the model's {shape.num_layers} layers"
    if texts:
        advice = _advise_policy(config, shape, wrong=set(texts))
        yield from (f"{text}; {advice}" for text in texts.values())


def _advise_policy(config: RunConfig, shape: ModelShape, *, wrong: set[str]) -> str:
    """Sizes of the one field that is wrong, where some work with everything else as it is; else the nearest layout."""
    parallel = config.parallel
    tensors = tensor_sizes(shape, at_most=config.cluster.gpus_per_node, side="policy")
    pipelines = stage_counts(shape)
    if len(wrong) == 1:
        (name,) = wrong
        sizes = tensors if name == "tensor" else pipelines
        if sizes := [size for size in sizes if loads(config, {f"parallel.{name}": size})]:
            return f"use {_nearest(sizes, getattr(parallel, name))}"
    now = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "world_size": parallel.world_size}
    for layout in _near_layouts(now, tensors, pipelines):
        changes: dict[str, Any] = {f"parallel.{name}": size for name, size in layout.items() if size != now[name]}
        if parallel.sequence and layout["tensor"] == 1:
            changes["parallel.sequence"] = False
        if loads(config, changes):
            return "use " + " ".join(f"{path}={format_value(value)}" for path, value in changes.items())
    return "no layout of this model loads; change the cluster or train.mini_batch_responses too"


def _near_layouts(now: Mapping[str, int], tensors: list[int], pipelines: list[int]) -> Iterable[dict[str, int]]:
    """Layouts of the model, those that change the sizes least first."""
    layouts = [
        {"tensor": tensor, "pipeline": pipeline, "world_size": tensor * pipeline * data}
        for tensor, pipeline in itertools.product(tensors, pipelines)
        for data in range(1, max(1, 2 * now["world_size"] // (tensor * pipeline)) + 1)
    ]
    return sorted(layouts, key=lambda layout: sum(abs(math.log2(layout[name] / now[name])) for name in now))


def _nearest(sizes: list[int], wanted: int) -> str:
    """The sizes on both sides of one: "4 or 7"."""
    below, above = [size for size in sizes if size < wanted], [size for size in sizes if size > wanted]
    return " or ".join(map(str, [*below[-1:], *above[:1]])) or "another model: no size splits this one"
