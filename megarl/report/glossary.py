"""The terms that the figures of a report use, each defined once."""

from collections.abc import Collection

TERMS: tuple[tuple[str, str], ...] = (
    ("r, lo, hi", "the ratio of the current to the old policy at a sampled token, and the clip's bounds of it"),
    ("A", "the advantage of the token; clip-low acts where A < 0 and r < lo, clip-high where A > 0 and r > hi"),
    ("p", "the probability of the sampled token under the current policy; -log p is its surprisal"),
    ("H", "the entropy of the current policy at the token's position, in nats; it is the mean surprisal"),
    ("Q, N", "Q = p (log p + H) of the sampled token; N is its mean over the vocabulary, sum of p² (log p + H)"),
    (
        "budget",
        "sum over a mini-batch's tokens of -c (Q - N), where c multiplies the gradient of log p in the update: the "
        "first-order change of the entropy by one plain gradient step, per unit of learning rate. Positive raises "
        "the entropy. Signs and shares compare between tokens and steps; sizes do not, since Adam rescales the step.",
    ),
    (
        "X, Y",
        "the tokens with r < lo and with r > hi, whatever the sign of A: the sets of Theorems 1 and 2 of arXiv "
        "2509.26114, which say what clipping does when rewards are independent of the response, per learning rate and "
        "E[max(A, 0)]. A dual clip, which the paper has not, adds D, the tokens with r above its bound, whose term "
        "counts like X's. They are about this run only as far as its rewards are like that; what its own advantages "
        "made of the clip is the budget's figure.",
    ),
    (
        "E1 - E4",
        "tokens by A and surprisal (FlexEC): E1 A > 0, common; E2 A > 0, rare; E3 A < 0, common; E4 A < 0, rare; "
        "common is -log p < H. By the sign of Q alone, E1 and E4 push the entropy down, E2 and E3 up.",
    ),
    ("upwards", "wherever a figure shows an effect on the entropy, upwards raises it"),
)


def terms_of(metrics: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(term, meaning) for a run that logs `metrics`; none where its figures use none of them."""
    uses = any(name.startswith(("entropy/", "clip_ratio/")) for name in metrics)
    return TERMS if uses else ()
