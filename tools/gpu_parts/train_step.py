"""Log-probs and an update of a model of a chosen shape with random weights, on one GPU: tokens a second, MFU, and the
memory against what `megarl plan` says."""

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpu_parts.check import Check
from gpu_parts.timing import measure_ceilings, peak_flops, wall_s
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors
from megarl.objective.tokens import Controls
from megarl.planning.policy_memory import CONTEXT_BYTES, policy_memory, policy_setup
from megarl.policy.process import RankPlace, leave_policy_group
from megarl.policy.worker import MegatronWorker
from megarl.records import Sample
from megarl.reshard.signals import listen
from tests.policy.ranks import make_config

SHAPES = Path(__file__).resolve().parent.parent.parent / "configs" / "shapes"
SMALL_SHAPE = "quickstart"
TOKENS, SMALL_TOKENS = 16_384, 256
"""Of a micro-batch."""
SAMPLES = 16
"""Of a micro-batch: lengths between SHORTEST and LONGEST of its tokens, which fill it."""
SHORTEST, LONGEST = 0.0183, 0.1067
REPEATS = 2
MEMORY_FACTOR = 1.05
"""`plan` is to be an upper bound, to this."""
GIB = 2**30


def run(check: Check) -> None:
    name = SMALL_SHAPE if check.small else check.settings.shape
    ceilings = measure_ceilings(check.device)
    path = make_model(check, name)
    for head in ("logits", "fused"):
        check.attempt(f"{name}, {head} head", measure, check, name, path, head, ceilings.product, need_s=15)
    if check.small:
        check.say("MFU and memory are a GPU's; here are seconds only")


def make_model(check: Check, name: str) -> Path:
    """Random bfloat16 weights."""
    path = check.scratch / "model"
    path.mkdir()
    path.joinpath("config.json").write_text((SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    generator = torch.Generator(device=check.device).manual_seed(0)
    tensors = {}
    for tensor, shape in hf_tensors(read_model_shape(path)).items():
        values = torch.empty(shape, device=check.device).normal_(0, 0.02, generator=generator)
        tensors[tensor] = (values + 1 if "norm" in tensor else values).bfloat16().cpu()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def measure(check: Check, name: str, path: Path, head: str, product: float) -> None:
    tokens = SMALL_TOKENS if check.small else TOKENS
    shape = read_model_shape(path)
    samples = make_batch(shape, tokens)
    config = make_run(path, tokens, head, len(samples))
    worker = start_worker(config)
    try:
        shard = shard_step(samples, config)[0]
        results = [measure_once(check.device, worker, shard) for _ in range(1 + REPEATS)]
    finally:
        worker.close()
        leave_policy_group()
    best = min(results[1:], key=lambda result: result["update_s"])
    forward, streams = forward_flops(shape, samples), sum(sample_stream(sample) for sample in samples)
    planned = policy_memory(policy_setup(config, shape), 0)
    values: dict[str, Any] = {
        "shape": name,
        "head": head,
        "tokens": streams,
        "first_update_s": results[0]["update_s"],
        **best,
        "score_tokens_per_s": streams / best["score_s"],
        "update_tokens_per_s": streams / best["update_s"],
        "planned_bytes": planned.total - CONTEXT_BYTES,
        "planned": planned.items,
    }
    said = (
        f"{name}, {head} head, {streams} tokens: score {values['score_tokens_per_s']:,.0f} tokens/s, "
        f"update {values['update_tokens_per_s']:,.0f} tokens/s"
    )
    if check.small:
        check.row(case=f"{name}, {head} head", **values)
        check.say(said)
        return
    peak = peak_flops(check.device)
    rates = {"score": forward / best["score_s"], "update": 3 * forward / best["update_s"]}
    values |= {f"{what}_of_product": rate / product for what, rate in rates.items()}
    values |= {f"{what}_mfu": rate / peak if peak else None for what, rate in rates.items()}
    mfu = f"MFU {rates['update'] / peak:.1%}, " if peak else ""
    check.say(
        f"{said}, {mfu}{rates['update'] / product:.0%} of the measured product; peak {best['peak_bytes'] / GIB:.2f} "
        f"GiB of {values['planned_bytes'] / GIB:.2f} planned"
    )
    at_most = MEMORY_FACTOR * values["planned_bytes"] / GIB
    check.judge(f"{name}, {head} head", {"peak_gib": (best["peak_bytes"] / GIB, at_most)}, **values)


def make_batch(shape: ModelShape, tokens: int) -> list[Sample]:
    """Two micro-batches of samples of uneven lengths."""
    draw = random.Random(0)
    prompt = max(1, tokens // 128)
    step = (LONGEST - SHORTEST) / (SAMPLES - 1)
    lengths = [int(tokens * (SHORTEST + step * index)) for index in range(SAMPLES)] * 2
    return [
        Sample(
            prompt=tuple(draw.randrange(shape.vocab_size) for _ in range(prompt)),
            response=tuple(draw.randrange(shape.vocab_size) for _ in range(max(2, length - prompt))),
            behavior_logp=(0.0,) * max(2, length - prompt),
            advantage=draw.choice([-1.0, 1.0]),
        )
        for length in lengths
    ]


def make_run(path: Path, tokens: int, head: str, responses: int) -> RunConfig:
    longest = int(tokens * LONGEST)
    return make_config(
        path,
        model__dtype="bfloat16",
        policy__tokens_per_micro_batch=tokens,
        policy__head=head,
        policy__optimizer={"lr": 1e-6},
        rollout__max_prompt_tokens=tokens // 128,
        rollout__max_response_tokens=longest,
        train={"prompts_per_step": 2, "samples_per_prompt": responses // 2, "mini_batch_responses": responses},
    )


def start_worker(config: RunConfig) -> MegatronWorker:
    listener = listen("127.0.0.1", 0)
    place = RankPlace(
        rank=0, world_size=1, master_host="127.0.0.1", master_port=listener.getsockname()[1], secret="5e" * 32,
        listener=listener,
    )  # fmt: skip
    return MegatronWorker(config, place, optimizer=config.policy.optimizer, total_updates=8, reference=False)


def measure_once(device: str, worker: MegatronWorker, shard: Any) -> dict[str, float]:
    """A score and an update; the peak of both."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    score_s, _ = wall_s(lambda: worker.score(shard), device)
    controls = Controls(step=1, seed=0, entropy_coefficient=0.0)
    update_s, report = wall_s(lambda: worker.train_mini_batch(0, controls), device)
    peak = float(torch.cuda.max_memory_allocated()) if device == "cuda" else float("nan")
    found = {"score_s": score_s, "update_s": update_s, "grad_norm": report.grad_norm}
    return found if device != "cuda" else found | {"peak_bytes": peak}


def sample_stream(sample: Sample) -> int:
    """Tokens that a model reads of it: the last is only predicted."""
    return len(sample.prompt) + len(sample.response) - 1


def forward_flops(shape: ModelShape, samples: list[Sample]) -> float:
    """Products of the layers, of causal attention (half the square), and of the head on response tokens."""
    hidden, head = shape.hidden_size, shape.head_dim
    layer = (2 * shape.num_heads + 2 * shape.num_kv_heads) * head * hidden + 3 * hidden * shape.ffn_size
    streams = [sample_stream(sample) for sample in samples]
    attention = sum(2 * stream**2 * shape.num_heads * head for stream in streams)
    responses = sum(len(sample.response) for sample in samples)
    return float(shape.num_layers * (2 * layer * sum(streams) + attention) + 2 * hidden * shape.vocab_size * responses)
