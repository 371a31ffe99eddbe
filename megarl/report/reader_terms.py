"""What the reader calls the numbers of a token, the rules and its keys."""

from dataclasses import dataclass

from megarl.config.facts import rules_that

RULE_CLASS_OF: dict[str, str] = {
    **{name: name for name in rules_that("clips")},
    **{name: effect for effect in ("limits", "masks", "adds") for name in rules_that(effect)},
    "saturated": "saturated",
}
"""Class of `reader_colours.RULE_CLASSES` by rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number that the reader shows of a token."""

    column: str
    """Of rollouts/step-N.parquet; "bound": computed from others."""
    meaning: str
    traced: bool = True
    """Whether only traced responses have it."""


NUMBERS = (
    Number(column="logp", meaning="log p of the token under the weights that its update started from, nats"),
    Number(column="old_logp", meaning="the same under the weights before the step's first update", traced=False),
    Number(column="behavior_logp", meaning="the same from the engine, when it sampled the token", traced=False),
    Number(column="ref_logp", meaning="the same under the reference weights", traced=False),
    Number(column="entropy", meaning="H at the token's position under the weights of logp, nats"),
    Number(column="old_entropy", meaning="H under the weights of old_logp, nats", traced=False),
    Number(column="ratio", meaning="r of the update, current to old policy"),
    Number(column="low", meaning="lower bound of r"),
    Number(column="high", meaning="upper bound of r; inf: none"),
    Number(
        column="bound",
        meaning="how far r is inside the bound of its side, high - r if A > 0, r - low if A < 0; negative: beyond",
    ),
    Number(column="gate", meaning="g, what multiplied the gradient of log p before weights"),
    Number(column="weight", meaning="product of the token's weights"),
    Number(column="coefficient", meaning="c, what multiplied the gradient of log p in the update, with all weights"),
    Number(column="token_advantage", meaning="A after token shaping"),
    Number(column="expected_q", meaning="N, the mean of Q = p (log p + H) over the vocabulary"),
    Number(column="rule", meaning="the rules that acted on the token"),
)
"""In the order in which they are shown."""

KEYS = (
    ("← →", "the token before, the next"),
    ("↑ ↓", "the line above, below"),
    ("Home End", "the first token, the last"),
    ("r R", "the next token that a rule acted on, the one before"),
    ("n p", "the next sample of the prompt, the one before"),
    ("1 - 5", "the tint, in the order of the list"),
    ("Tab", "to the next control"),
)
"""(keys, what they do) while the tokens have the focus."""
