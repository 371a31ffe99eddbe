"""Every method gives the same loss, gradient, chosen tokens and metrics under every layout.

One worker per layout runs all methods, each from the same weights: three updates of a step, so that ratios have moved
when the second and third mini-batch come. The reference is one rank with one micro-batch. Rules that rank are run once
more on copies of a few responses, where every edge they find lies between tokens that are equal by construction.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megarl.config.loader import load_config
from megarl.config.objective import ObjectiveConfig
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.contexts import at_resolution
from megarl.objective.controllers import ControllerState
from megarl.objective.token_sums import SUM_NAMES
from megarl.objective.tokens import Controls
from megarl.policy.mini_batch import ObjectivePasses
from megarl.policy.passes import Passes
from megarl.policy.worker import MegatronWorker
from megarl.records import Sample
from megarl.rules import Rule, rule_names
from tests.policy.ranks import (
    StepResult,
    make_checkpoint,
    make_config,
    make_samples,
    run_workers,
    take_step,
)
from tests.policy.states import keep_state, restore_state

ROOT = Path(__file__).parents[2]
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.toml"))
COMBINED = ("flexec-id", "high-entropy-tokens", "tis", "entropy-skywork")
"""One run with pieces of four plug points."""

SMALL_BATCH: dict[str, list[str]] = {
    # The authors' fractions and thresholds choose nothing among a hundred tokens of a random model.
    "clip-cov": ["objective.weights.clip_cov.fraction=0.1", "objective.weights.clip_cov.low=0.0"],
    "kl-cov": ["objective.auxiliary.kl_cov.fraction=0.1"],
    "clip-b": ["objective.weights.clip_b.mu=0.3"],
    "clip-v": ["objective.weights.clip_v.mu=0.3", "objective.weights.clip_v.max_fraction=0.1"],
    "gspo": ["objective.clip.low=0.02", "objective.clip.high=0.02"],
    "gspo-token": ["objective.clip.low=0.02", "objective.clip.high=0.02"],
    "sequence-rejection": ["objective.weights.sequence_rejection.low=0.9"],
    "opsm": ["objective.weights.opsm.threshold=0.01"],
    # An entropy below the target asks for all there is; with this gain for a share that lies inside the range.
    "closed-loop-hold": ["objective.clip.loop.gain=0.05"],
    "closed-loop-rise-fall": ["objective.clip.loop.gain=0.1"],
    "closed-loop-flexec": ["objective.clip.loop.gain=0.05"],
    "dppo-tv": ["objective.gate.low=0.004", "objective.gate.high=0.004"],
    "dppo-kl": ["objective.gate.low=1e-4", "objective.gate.high=1e-4"],
    "up-grpo": ["objective.clip.low=0.02"],
    "nsr": ["objective.clip.low=0.02", "objective.clip.high=0.02"],
    "sat": ["objective.clip.low=0.05", "objective.clip.high=0.05"],
    "wapo": ["objective.clip.high=0.05"],
}
QUICK_TIED_METHODS = ("high-entropy-tokens", "kl-cov", "clip-v")
TIED_METHODS = (
    *(*QUICK_TIED_METHODS, "clip-cov", "clip-b", "steer", "erc", "bapo", "archer", "dapo", "stare", "opefo", "sat"),
    *("matched-control", "closed-loop-hold", "closed-loop-flexec"),
)
"""Methods that rank, take quantiles, or compare with what they found in the mini-batch."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {"policy__tokens_per_micro_batch": 10_000},
    "micro-batches of 64 tokens": {},
    "micro-batches of 24 tokens": {"policy__tokens_per_micro_batch": 24},
    "fused head": {"policy__head": "fused"},
    "TP2": {"parallel": {"tensor": 2, "world_size": 2}},
    "TP2 sequence parallel, fused head": {
        "parallel": {"tensor": 2, "world_size": 2, "sequence": True},
        "policy__head": "fused",
    },
    "TP3": {"parallel": {"tensor": 3, "world_size": 3}},
    "PP2": {"parallel": {"pipeline": 2, "world_size": 2}},
    "DP2": {"parallel": {"world_size": 2}},
    "DP2, micro-batches of 24 tokens": {"parallel": {"world_size": 2}, "policy__tokens_per_micro_batch": 24},
    "TP2 DP2": {"parallel": {"tensor": 2, "world_size": 4}},
    "PP2 DP2": {"parallel": {"pipeline": 2, "world_size": 4}},
}
QUICK_METHODS = (
    *("bapo", "clip-cov", "closed-loop-hold", "gspo", "high-entropy-tokens", "kl-cov", "matched-control", "prorlv2"),
)
QUICK_LAYOUTS = ("one rank", "TP3", "DP2, micro-batches of 24 tokens")

TRAIN = {
    "train": {"prompts_per_step": 6, "samples_per_prompt": 4, "mini_batch_responses": 8, "steps": 4},
    "policy__optimizer": {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-2},
}


def test_methods_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    methods = [*((name,) for name in QUICK_METHODS), COMBINED]
    acted = check_matrix(tmp_path, methods, QUICK_TIED_METHODS, QUICK_LAYOUTS)
    assert {"clip_low", "clip_high", "clip_cov", "kl_cov", "low_entropy", "importance_mask", "clip_v"} <= acted
    assert "matched" in acted


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_method_depends_on_any_layout(tmp_path: Path) -> None:
    acted = check_matrix(tmp_path, [*((name,) for name in METHODS), COMBINED], TIED_METHODS, tuple(LAYOUTS))
    # A ratio of e^20 does not come about in three updates; every other rule must have acted somewhere.
    assert acted == {str(rule.name).lower() for rule in Rule} - {"saturated"}


def check_matrix(
    tmp_path: Path, methods: Sequence[tuple[str, ...]], tied: Sequence[str], layouts: Sequence[str]
) -> set[str]:
    """Compare all layouts with the first, `tied` methods on ties; returns the rules that acted."""
    path = make_checkpoint(tmp_path / "model")
    samples, ties = make_trained_samples(path), make_tied_samples()
    cases = {"+".join(names): (load_objective(path, names, tmp_path), samples) for names in methods}
    cases |= {f"{name}, ties": (load_objective(path, (name,), tmp_path), ties) for name in tied}
    jobs = []
    for layout in layouts:
        config = make_config(path, **{**TRAIN, **LAYOUTS[layout], "objective": {"auxiliary": {"kl": {}}}})
        jobs.append((config, (cases,)))
    results = run_workers(jobs, run_methods, timeout_s=3000)
    expected = results[0]
    for layout, result in zip(layouts[1:], results[1:], strict=True):
        for name in cases:
            assert_same(f"{name} under {layout}", result[name], expected[name])
    check_survey(expected["high-entropy-tokens"])
    check_ties(expected["high-entropy-tokens, ties"], ties)
    check_loop(expected["closed-loop-hold"])
    acted = {int(flags) for result in expected.values() for trace in result.traces for flags in trace.rule}
    return {rule_names(int(rule)) for rule in Rule if any(flags & rule for flags in acted)}


def check_ties(result: StepResult, samples: list[Sample]) -> None:
    """Tokens of one context are dropped together, and the edge lies among them in every update."""
    for update in range(3):
        by_context: dict[Any, set[bool]] = {}
        traces = result.traces[8 * update : 8 * update + 8]
        for trace in traces:
            for position, flags in enumerate(trace.rule):
                context = tuple(samples[trace.sample_id].response[:position])
                by_context.setdefault(context, set()).add(bool(flags & Rule.LOW_ENTROPY))
        assert all(len(dropped) == 1 for dropped in by_context.values()), f"update {update}"
        kept = sum(not flags & Rule.LOW_ENTROPY for trace in traces for flags in trace.rule)
        assert 22 < kept <= 28, f"update {update}"  # the 22nd and all that tie with it, four or eight


def check_loop(result: StepResult) -> None:
    """One pair of bounds for all tokens of an update: the starting ones while no ratio has moved, then chosen ones."""
    bounds = []
    for update in range(3):
        traces = [trace for trace in result.traces if trace.sample_id // 8 == update]
        (found,) = {pair for trace in traces for pair in zip(trace.low.tolist(), trace.high.tolist(), strict=True)}
        bounds.append(found)
    first, *later = bounds
    assert first == pytest.approx((1 - 0.21, 1 + 0.21))
    assert any(found != pytest.approx(first) for found in later)
    assert all(0.6 < low < 0.98 for low, _ in later)  # inside the range: what was wanted could be had


def check_survey(result: StepResult) -> None:
    """Every update masks by the entropies of the weights it starts from: those that its own pass saw."""
    for update in range(3):
        traces = [trace for trace in result.traces if trace.sample_id // 8 == update]
        entropy = [value for trace in traces for value in trace.entropy]
        entropy = at_resolution(torch.tensor(entropy)).tolist()
        dropped = [bool(flags & Rule.LOW_ENTROPY) for trace in traces for flags in trace.rule]
        threshold = sorted(entropy, reverse=True)[math.ceil(0.2 * len(entropy)) - 1]
        assert dropped == [value < threshold for value in entropy], f"update {update}"


def load_objective(path: Path, names: Sequence[str], directory: Path) -> ObjectiveConfig:
    """The objective of these fragments, laid over each other."""
    base = directory / "base.toml"
    base.write_text(
        f'name = "base"\n[model]\npath = "{path}"\n[data.train]\nsource = "reasoning_gym"\ntask = "chain_sum"\n'
        '[reward.verifier]\nkind = "reasoning_gym"\n[cluster]\ngpus_per_node = 64\n'
    )
    fragments = [str(ROOT / "configs" / "methods" / f"{name}.toml") for name in names]
    overrides = [text for name in names for text in SMALL_BATCH.get(name, [])]
    return load_config(base, [*fragments, *overrides, "train.mini_batch_responses=8"]).objective


def make_trained_samples(path: Path) -> list[Sample]:
    """Twenty-four samples: eight, and the same eight twice more with every other advantage turned round, so that the
    later updates see ratios that have moved with and against their advantage. Behaviour and expert log-probs lie
    around the policy's own."""
    first = make_samples(8, seed=1)
    # One of them said nothing to a prompt that fills a small micro-batch: it trains nothing and disturbs nothing.
    first[5] = replace(first[5], prompt=tuple(range(1, 31)), response=(), behavior_logp=None)
    old = run_workers([(make_config(path), (first,))], score_samples)[0]
    draw = random.Random(0)
    made = []
    for turn in range(3):
        for index, (sample, logps) in enumerate(zip(first, old, strict=True)):
            spread = (0.0, 0.02, 0.5)[index % 3]
            expert = [logp + draw.gauss(0, 0.5) for logp in logps]
            expert[len(expert) * 3 // 4 + 1 :] = [float("nan")] * len(expert[len(expert) * 3 // 4 + 1 :])
            made.append(
                replace(
                    sample,
                    advantage=sample.advantage * (-1) ** (index * turn),
                    behavior_logp=tuple(logp + draw.gauss(0, spread) for logp in logps),
                    expert_logp=tuple(expert),
                    correct=index % 2 == 0,
                    entropy_scale=draw.random(),
                )
            )
    return made


def make_tied_samples() -> list[Sample]:
    """Three mini-batches of one prompt, two responses and four copies of each, with the advantages of a group: 108
    tokens in 26 classes of four and one of eight, the first tokens. 80/20 keeps 22 of 108 or a few more: no multiple of
    four."""
    draw = random.Random(5)
    prompt = tuple(draw.randrange(77) for _ in range(5))
    responses = [tuple(draw.randrange(77) for _ in range(length)) for length in (13, 14)]
    made = []
    for turn in range(3):
        for copy in range(8):
            response = responses[(copy + copy // 4) % 2]
            advantage = 1.0 if (response is responses[0]) == (turn != 1) else -1.0
            behavior = tuple(-3.0 + draw.gauss(0, 0.3) for _ in response)
            made.append(Sample(prompt=prompt, response=response, behavior_logp=behavior, advantage=advantage))
    return made


def score_samples(worker: MegatronWorker, config: RunConfig, rank: int, samples: list[Sample]) -> list[list[float]]:
    from megarl.controller.batching import shard_mini_batch
    from megarl.parallel.batches import split_by_sample

    (mini,) = shard_mini_batch(samples, [1.0] * len(samples), config, first_id=0)
    scored = worker.score((mini,))
    assert scored is not None
    by_id = {}
    for batch, values in zip(mini, scored[0], strict=True):
        by_id |= dict(zip(batch.sample_ids, split_by_sample(values.old_logp_R, batch), strict=True))
    return [by_id[index].tolist() for index in range(len(samples))]


def run_methods(
    worker: MegatronWorker, config: RunConfig, rank: int, cases: dict[str, tuple[ObjectiveConfig, list[Sample]]]
) -> dict[str, StepResult | None]:
    """Every objective on its samples from the worker's first weights, one after another."""
    start = keep_state(worker)
    results = {}
    for name, (objective, samples) in cases.items():
        restore_state(worker, start)
        worker._objective = ObjectivePasses(
            objective, Passes(device=worker._device), device=worker._device, temperature=config.rollout.temperature
        )
        shards = shard_step(samples, config.model_copy(update={"objective": objective}))
        result = take_step(worker, config, rank, shards, controls_of(objective))
        if result is not None:
            # A tensor takes a file descriptor on its way to the parent, and there are thousands here.
            result.weights = {tensor: weight.numpy() for tensor, weight in result.weights.items()}
        results[name] = result
    return results


def controls_of(objective: ObjectiveConfig) -> Controls:
    """What the controllers say at step 40 of 100, at an entropy below every target."""
    state = ControllerState(objective, total_steps=100, seed=7)
    state.load_state_dict(state.state_dict() | {"step": 39, "entropy_start": 0.5})
    return state.begin_step(40, 0.05)


def assert_same(where: str, result: StepResult, expected: StepResult) -> None:
    assert [trace.sample_id for trace in result.traces] == [trace.sample_id for trace in expected.traces], where
    for got, want in zip(result.traces, expected.traces, strict=True):
        place = f"{where}: sample {got.sample_id}"
        assert got.rule.tolist() == want.rule.tolist(), place
        for column in ("logp", "entropy", "ratio", "low", "high", "gate", "weight", "advantage"):
            assert getattr(got, column) == pytest.approx(getattr(want, column), rel=1e-4, abs=5e-5), f"{place} {column}"
    for update, (got_sums, want_sums) in enumerate(zip(result.sums, expected.sums, strict=True)):
        rounding = 1e-5 * want_sums[SUM_NAMES.index("tokens")]
        for total, a, b in zip(SUM_NAMES, got_sums, want_sums, strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=rounding), f"{where}: {total} of update {update}"
    assert result.grad_norms == pytest.approx(expected.grad_norms, rel=2e-4, abs=1e-7), where
    for tensor, want_weight in expected.weights.items():
        difference = np.linalg.norm(result.weights[tensor] - want_weight) / np.linalg.norm(want_weight)
        assert difference < 1e-5, f"{where}: {tensor} differs by {difference:.1e} of its norm"


def test_methods_are_found() -> None:
    assert set(QUICK_METHODS) | set(COMBINED) <= set(METHODS)
    assert set(SMALL_BATCH) <= set(METHODS)
    assert len(METHODS) >= 40
