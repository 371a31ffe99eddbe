"""The same batch gives the same loss, entropy, clip fractions, gradient norm and weights under every layout.

The reference is none of the layouts: transformers' model with a loss and an AdamW written out here in plain PyTorch.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megarl.config.run import RunConfig
from megarl.objective.token_sums import SUM_NAMES
from megarl.records import Sample
from tests.policy.ranks import StepResult, make_checkpoint, make_config, make_samples, run_steps

OBJECTIVE = {
    # Bounds so tight that every clip acts at the second mini-batch, though the policy has barely moved.
    "objective__clip": {"low": 0.01, "high": 0.02},
    "objective__gate": {"dual": 1.01},
    "objective__aggregation": {"mode": "seq-mean-token-mean"},
    "objective__auxiliary": {"kl": {"coefficient": 0.05, "estimator": "k2"}, "entropy": {"coefficient": 0.03}},
    "rollout__temperature": 0.8,
    "policy__optimizer": {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-2, "warmup_updates": 1, "clip_grad_norm": 0.5},
}
OVERLAP = {"policy__overlap": "all", "policy__bucket_elements": 20_000, "policy__tokens_per_micro_batch": 48}
"""Several buckets, and several micro-batches in an update, of which the last one's backward is overlapped."""
LAYOUTS = {
    "one rank": {},
    "micro-batches of 24 tokens": {"policy__tokens_per_micro_batch": 24},
    "one micro-batch": {"policy__tokens_per_micro_batch": 10_000},
    "fused head": {"policy__head": "fused"},
    "TP2": {"parallel": {"tensor": 2, "world_size": 2}},
    "TP2 fused head": {"parallel": {"tensor": 2, "world_size": 2}, "policy__head": "fused"},
    "PP2 fused head": {"parallel": {"pipeline": 2, "world_size": 2}, "policy__head": "fused"},
    "TP2 sequence parallel": {"parallel": {"tensor": 2, "world_size": 2, "sequence": True}},
    "TP2 recompute": {"parallel": {"tensor": 2, "world_size": 2}, "policy__recompute": "full"},
    "PP2": {"parallel": {"pipeline": 2, "world_size": 2}},
    "PP2 selective recompute": {"parallel": {"pipeline": 2, "world_size": 2}, "policy__recompute": "selective"},
    "DP2": {"parallel": {"world_size": 2}},
    "DP2 plain optimizer": {"parallel": {"world_size": 2}, "policy__distributed_optimizer": False},
    "TP2 PP2": {"parallel": {"tensor": 2, "pipeline": 2, "world_size": 4}},
    "TP2 DP2 sequence parallel": {"parallel": {"tensor": 2, "world_size": 4, "sequence": True}},
    "TP2 DP2 sequence parallel fused head": {
        "parallel": {"tensor": 2, "world_size": 4, "sequence": True},
        "policy__head": "fused",
    },
    "PP2 DP2": {"parallel": {"pipeline": 2, "world_size": 4}},
    "DP2, gradients overlap": {**OVERLAP, "parallel": {"world_size": 2}, "policy__overlap": "gradients"},
    "DP2, all overlaps": {**OVERLAP, "parallel": {"world_size": 2}},
    "DP2 plain optimizer, gradients overlap": {
        **OVERLAP,
        "parallel": {"world_size": 2},
        "policy__overlap": "gradients",
        "policy__distributed_optimizer": False,
    },
    "TP2 DP2 sequence parallel, all overlaps": {
        **OVERLAP,
        "parallel": {"tensor": 2, "world_size": 4, "sequence": True},
    },
    "TP2 DP2 fused head recompute, all overlaps": {
        **OVERLAP,
        "parallel": {"tensor": 2, "world_size": 4},
        "policy__head": "fused",
        "policy__recompute": "full",
    },
    "PP2 DP2, all overlaps": {**OVERLAP, "parallel": {"pipeline": 2, "world_size": 4}},
}


def job(path: Path, layout: dict[str, object]) -> RunConfig:
    return make_config(path, **{**OBJECTIVE, **layout})


QUICK_LAYOUTS = ["TP2 fused head", "PP2", "TP2 DP2 sequence parallel", "DP2, all overlaps", "PP2 DP2, all overlaps"]


@pytest.mark.parametrize(
    ("tied", "layouts"),
    [(True, list(LAYOUTS)), (False, QUICK_LAYOUTS), pytest.param(False, list(LAYOUTS), marks=pytest.mark.slow)],
)
def test_every_layout_agrees_with_plain_pytorch(tmp_path: Path, tied: bool, layouts: list[str]) -> None:
    path = make_checkpoint(tmp_path / "model", tied=tied)
    # The second half repeats the first, every other advantage turned round: the second update sees ratios that the
    # first has moved both with and against their advantage.
    first = make_samples(8, seed=1)
    samples = first + [replace(s, advantage=s.advantage * (-1) ** i) for i, s in enumerate(first)]
    results = run_steps([(job(path, LAYOUTS[name]), samples) for name in layouts])
    expected = plain_step(path, job(path, {}), samples)
    for clipped in ("clipped_low", "clipped_high", "clipped_dual"):
        assert expected.sums[1][PLAIN_NAMES.index(clipped)] > 0
    for name, result in zip(layouts, results, strict=True):
        assert_equal(name, result, expected)


def assert_equal(name: str, result: StepResult, expected: StepResult) -> None:
    for got, want in zip(result.old_logp, expected.old_logp, strict=True):
        assert got == pytest.approx(want, abs=2e-5), name
    for update, (got, want) in enumerate(zip(result.sums, expected.sums, strict=True)):
        # Sums that cancel (old - current) are as exact as their terms: 1e-5 per token. Counts are exact.
        rounding = 1e-5 * want[PLAIN_NAMES.index("tokens")]
        for total, b in zip(PLAIN_NAMES, want, strict=True):
            a = got[SUM_NAMES.index(total)]
            assert a == pytest.approx(b, rel=1e-5, abs=rounding), f"{name}: {total} of update {update}"
    assert result.grad_norms == pytest.approx(expected.grad_norms, rel=1e-5), name
    assert result.weights.keys() == expected.weights.keys()
    for tensor, want in expected.weights.items():
        difference = (result.weights[tensor] - want).norm() / want.norm()
        assert difference < 1e-5, f"{name}: {tensor} differs by {difference:.1e} of its norm"


def plain_step(path: Path, config: RunConfig, samples: list[Sample]) -> StepResult:
    """Two updates on transformers' model, one sequence at a time, with the formulas written out."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ref = [plain_tokens(model, sample, config)[0].detach() for sample in samples]
    result = StepResult([row.tolist() for row in ref])
    optimizer = plain_adamw(model, config)
    half = config.train.mini_batch_responses
    for update, start in enumerate(range(0, len(samples), half)):
        sums = torch.zeros(len(PLAIN_NAMES), dtype=torch.float64)
        optimizer.zero_grad()
        for index in range(start, start + half):
            loss, statistics = plain_loss(model, samples[index], ref[index], config, 1 / half)
            loss.backward()
            sums += statistics
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.policy.optimizer.clip_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.policy.optimizer.lr * min((update + 1) / config.policy.optimizer.warmup_updates, 1)
        optimizer.step()
        result.sums.append(sums.tolist())
        result.grad_norms.append(norm.item())
    names = [name for name, _ in model.named_parameters()]
    result.weights = {name: model.state_dict()[name].clone() for name in names}
    return result


def plain_tokens(
    model: torch.nn.Module, sample: Sample, config: RunConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-prob, entropy and the mean of p (log p + H) over the vocabulary, at each response token."""
    tokens = torch.tensor([[*sample.prompt, *sample.response]])
    logits = model(tokens).logits[0, len(sample.prompt) - 1 : -1] / config.rollout.temperature
    logp = torch.log_softmax(logits, -1)
    entropy = -(logp.exp() * logp).sum(-1)
    expected_q = (logp.exp() ** 2 * (logp + entropy[:, None])).sum(-1)
    return logp.gather(1, torch.tensor(sample.response, dtype=torch.int64)[:, None])[:, 0], entropy, expected_q


PLAIN_NAMES = (
    "tokens",
    "entropy",
    "response_entropy",
    "logp",
    "policy_loss",
    "auxiliary_loss",
    "kl",
    "old_minus_current",
    "ratio",
    "clipped_low",
    "clipped_high",
    "clipped_dual",
    "positive",
    "negative",
    "low_gap",
    "high_gap",
    "budget",
)
"""The sums that the plain reference makes too, by the names of the accounting."""


def plain_loss(
    model: torch.nn.Module, sample: Sample, ref: torch.Tensor, config: RunConfig, sequence_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped objective with dual clip and k2, averaged over the tokens of the response."""
    clip, dual, auxiliary = config.objective.clip, config.objective.gate.dual, config.objective.auxiliary
    logp, entropy, expected_q = plain_tokens(model, sample, config)
    ratio, advantage = (logp - ref).exp(), sample.advantage
    policy = -torch.min(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage)
    if advantage < 0:
        policy = torch.min(policy, torch.tensor(-dual * advantage))
    penalty = 0.5 * (logp - ref) ** 2
    extra = auxiliary.kl.coefficient * penalty - auxiliary.entropy.coefficient * entropy
    weight = sequence_weight / len(sample.response)
    r, below, above = ratio.detach(), ratio < 1 - clip.low, ratio > 1 + clip.high
    kept = ~above if advantage > 0 else ~below & (r <= dual)
    gap = expected_q - logp.exp() * (logp + entropy)
    statistics = {
        "tokens": float(len(sample.response)),
        "entropy": entropy.sum(),
        "response_entropy": entropy.mean(),
        "logp": logp.sum(),
        "policy_loss": weight * policy.sum(),
        "auxiliary_loss": weight * extra.sum(),
        "kl": penalty.sum(),
        "old_minus_current": (ref - logp).sum(),
        "ratio": r.sum(),
        "clipped_low": below.sum() * (advantage < 0),
        "clipped_high": above.sum() * (advantage > 0),
        "clipped_dual": (r > dual).sum() * (advantage < 0),
        "positive": float(len(sample.response)) * (advantage > 0),
        "negative": float(len(sample.response)) * (advantage < 0),
        "low_gap": (r * below * gap).sum(),
        "high_gap": (r * above * gap).sum(),
        "budget": (weight * r * advantage * kept * gap).sum(),
    }
    loss = weight * (policy + extra).sum()
    return loss, torch.tensor([float(statistics[name]) for name in PLAIN_NAMES], dtype=torch.float64)


def plain_adamw(model: torch.nn.Module, config: RunConfig) -> torch.optim.AdamW:
    settings = config.policy.optimizer
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        foreach=False,
    )
