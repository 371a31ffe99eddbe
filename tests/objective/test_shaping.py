"""Entropy-shaped advantages against hand-computed numbers."""

import pytest
import torch

from megarl.config.advantage import EntropyAdvantage, ShapingConfig
from megarl.objective.shaping import shaped_advantage
from tests.objective.tokens import make_tokens

ENTROPY = ShapingConfig(entropy=EntropyAdvantage(alpha=0.4, kappa=2.0))


def test_bonus_by_hand() -> None:
    # min(.4 * 1, .8 / 2) = .4; min(.4 * 3, .5 / 2) = .25; min(.4 * .5, 2 / 2) = .2 twice.
    tokens = make_tokens(entropy=[1.0, 3.0, 0.5, 0.5], advantage=[0.8, -0.5, 2.0, -2.0])
    assert shaped_advantage(ENTROPY, tokens).tolist() == pytest.approx([1.2, -0.25, 2.2, -1.8])


def test_absent_shaping_changes_nothing() -> None:
    tokens = make_tokens(advantage=[0.8, -0.5])
    assert torch.equal(shaped_advantage(ShapingConfig(), tokens), tokens.advantage_T)


def test_zero_advantage_stays_exactly_zero_even_where_the_entropy_is_rounded_below_zero() -> None:
    tokens = make_tokens(entropy=[2.0, -1e-8, 0.0], advantage=[0.0, 0.0, 0.0])
    assert shaped_advantage(ENTROPY, tokens).tolist() == [0.0, 0.0, 0.0]


def test_sign_is_kept_for_every_kappa_above_one() -> None:
    advantage_T = torch.linspace(-3, 3, 61, dtype=torch.float64)
    tokens = make_tokens(entropy=50.0, advantage=advantage_T, lengths=[61])
    config = ShapingConfig(entropy=EntropyAdvantage(alpha=1.0, kappa=1.001))
    assert torch.equal(shaped_advantage(config, tokens).sign(), advantage_T.sign())


def test_reads_the_current_entropy_without_its_gradient() -> None:
    entropy_T = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    shaped_T = shaped_advantage(ENTROPY, make_tokens(entropy=entropy_T, old_entropy=9.0, advantage=[10.0]))
    assert shaped_T.tolist() == pytest.approx([10.4])
    assert not shaped_T.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tokens(dtype) -> None:
    shaped_T = shaped_advantage(ENTROPY, make_tokens([], dtype=dtype))
    assert shaped_T.shape == (0,)
    assert shaped_T.dtype == dtype
