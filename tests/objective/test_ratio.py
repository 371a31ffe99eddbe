"""Log ratios of every level and anchor, by hand."""

import pytest
import torch

from megarl.config.trust import RatioConfig
from megarl.objective.ratio import LOG_RATIO_LIMIT, anchor_logp, log_ratio, saturated
from tests.objective.tokens import make_tokens

LENGTHS = [2, 0, 3]
OLD = [-1.0, -2.0, -1.0, -1.0, -1.0]
LOGP = [-0.9, -2.3, -1.0, -0.7, -1.6]  # log ratios .1, -.3 (mean -.1); 0, .3, -.6 (mean -.1)
LEVELS = ["token", "sequence", "sequence_token", "geometric", "prefix"]


def gradient(level: str, upstream: list[float]) -> list[float]:
    logp_T = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    value_T = log_ratio(RatioConfig(level=level), make_tokens(LENGTHS, logp=logp_T, old_logp=OLD))
    (value_T * torch.tensor(upstream, dtype=torch.float64)).sum().backward()
    assert logp_T.grad is not None
    return logp_T.grad.tolist()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [0.1, -0.3, 0.0, 0.3, -0.6]),
        ("geometric", [0.1, -0.3, 0.0, 0.3, -0.6]),
        ("sequence", [-0.1] * 5),
        ("sequence_token", [-0.1] * 5),
        ("prefix", [0.1, -0.2, 0.0, 0.3, -0.3]),
    ],
)
def test_values_by_hand(level, expected) -> None:
    tokens = make_tokens(LENGTHS, logp=LOGP, old_logp=OLD)
    assert log_ratio(RatioConfig(level=level), tokens).tolist() == pytest.approx(expected)


def test_gradients_by_hand() -> None:
    upstream = [1.0, 3.0, 2.0, 5.0, -1.0]
    for level in ("token", "geometric", "sequence_token", "prefix"):
        assert gradient(level, upstream) == upstream
    # Through the mean every token gets the mean of its response's: (1 + 3) / 2, (2 + 5 - 1) / 3.
    assert gradient("sequence", upstream) == pytest.approx([2.0, 2.0, 2.0, 2.0, 2.0])
    assert gradient("sequence", [1.0, 0.0, 0.0, 0.0, 9.0]) == pytest.approx([0.5, 0.5, 3.0, 3.0, 3.0])


def test_anchor_is_the_one_configured() -> None:
    tokens = make_tokens(logp=[-1.0, -2.0], old_logp=[-1.5, -1.5], behavior_logp=[-1.0, -4.0])
    assert log_ratio(RatioConfig(anchor="old"), tokens).tolist() == [0.5, -0.5]
    assert log_ratio(RatioConfig(anchor="behavior"), tokens).tolist() == [0.0, 2.0]
    assert anchor_logp("behavior", tokens).tolist() == [-1.0, -4.0]


@pytest.mark.parametrize("function", [log_ratio, saturated])
def test_missing_behavior_logp_is_refused(function) -> None:
    with pytest.raises(ValueError, match="no behavior_logp"):
        function(RatioConfig(anchor="behavior"), make_tokens([2]))


def test_clamp_acts_after_the_level_and_takes_the_gradient() -> None:
    # Token log ratios 30, -4 (mean 13); -41, -1 (mean -21); exactly at the limit.
    logp_T = torch.tensor([-1.0, -35.0, -72.0, -32.0, -11.0], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens([2, 2, 1], logp=logp_T, old_logp=[-31.0] * 5)
    assert saturated(RatioConfig(), tokens).tolist() == [True, False, True, False, False]
    assert log_ratio(RatioConfig(), tokens).tolist() == [LOG_RATIO_LIMIT, -4.0, -LOG_RATIO_LIMIT, -1.0, LOG_RATIO_LIMIT]
    for level in ("sequence", "sequence_token"):
        assert saturated(RatioConfig(level=level), tokens).tolist() == [False, False, True, True, False]
        assert log_ratio(RatioConfig(level=level), tokens).tolist() == [13.0, 13.0, -20.0, -20.0, 20.0]
    log_ratio(RatioConfig(), tokens).sum().backward()
    assert logp_T.grad is not None
    assert logp_T.grad.tolist() == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert not saturated(RatioConfig(level="sequence"), tokens).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_tokens(level, lengths, dtype) -> None:
    config = RatioConfig(level=level)
    tokens = make_tokens(lengths, dtype=dtype)
    assert log_ratio(config, tokens).shape == (0,)
    assert log_ratio(config, tokens).dtype == dtype
    assert saturated(config, tokens).shape == (0,)
