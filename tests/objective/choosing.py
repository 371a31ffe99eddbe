"""Calls of `choose` for tests, and mini-batches that can be laid out in any way."""

from collections.abc import Sequence
from typing import Any

import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.choices import choose
from megarl.objective.tokens import Choices, Controls, Reduce, TokenBatch
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

CONTROLS = Controls(step=4, seed=17)
COLUMNS = ("logp", "entropy", "expected_q", "old_logp", "old_entropy", "advantage", "behavior_logp")

Sample = dict[str, Any]
"""id, and one list per column."""
Chosen = dict[tuple[int, int], tuple[float, int, bool | None]]
"""(sample, position) to (weight, flags, KL-Cov)."""


def choose_of(objective: dict[str, Any], tokens: TokenBatch, reduce: Reduce | None = None) -> Choices:
    """The choices of the configuration that `objective` makes."""
    return choose(ObjectiveConfig.model_validate(objective), tokens, CONTROLS, reduce or SingleRank())


def random_samples(lengths: Sequence[int], *, seed: int = 0, distinct: int | None = None) -> list[Sample]:
    """Samples with plausible float32 columns; with `distinct`, values repeat (ties)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float, shift: float, size: int) -> list[float]:
        normal = torch.randn(size, generator=generator)
        if distinct is not None:
            normal = (normal * distinct).round() / distinct
        return (normal * scale + shift).tolist()

    samples = []
    for index, length in enumerate(lengths):
        logp = [-abs(value) for value in draw(2.0, 0.0, length)]
        samples.append(
            {
                "id": 100 + 7 * index,
                "logp": logp,
                "old_logp": [value + move for value, move in zip(logp, draw(0.3, 0.0, length), strict=True)],
                "behavior_logp": [value + move for value, move in zip(logp, draw(0.3, 0.0, length), strict=True)],
                "entropy": [abs(value) for value in draw(1.0, 0.5, length)],
                "old_entropy": [abs(value) for value in draw(1.0, 0.5, length)],
                "expected_q": [abs(value) for value in draw(0.2, 0.0, length)],
                "advantage": draw(1.0, 0.1, 1) * length,
            }
        )
    return samples


def batch_of(samples: Sequence[Sample]) -> TokenBatch:
    """float32 TokenBatch of the samples, in order."""
    columns = {name: [value for sample in samples for value in sample[name]] for name in COLUMNS}
    return make_tokens(
        [len(sample["logp"]) for sample in samples],
        dtype=torch.float32,
        sample_ids=[sample["id"] for sample in samples],
        **columns,
    )


def by_token(tokens: TokenBatch, choices: Choices) -> Chosen:
    """What was chosen of each token, whatever the layout."""
    kl_cov = [None] * tokens.logp_T.numel() if choices.kl_cov_T is None else choices.kl_cov_T.tolist()
    names = zip(tokens.sample_id_T.tolist(), tokens.position_T.tolist(), strict=True)
    return dict(zip(names, zip(choices.weight_T.tolist(), choices.rule_T.tolist(), kl_cov, strict=True), strict=True))
