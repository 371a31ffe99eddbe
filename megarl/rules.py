"""What can act on a token in the objective, as flags, and the names by which files and reports call it."""

from enum import IntFlag, unique
from functools import cache


@unique
class Rule(IntFlag):
    """Which rules acted on a token; flags add up."""

    CLIP_LOW = 1 << 0
    """A < 0 and the ratio is below lo."""
    CLIP_HIGH = 1 << 1
    """A > 0 and the ratio is above hi."""
    DUAL = 1 << 2
    """A < 0 and the ratio is above the dual bound."""
    CAP = 1 << 3
    """A gate limited the weight (CISPO, DPPO, ASPO)."""
    DPPO = 1 << 4
    """Dropped: the probability moved too far."""
    TIS = 1 << 5
    """The importance weight was limited."""
    IMPORTANCE_MASK = 1 << 6
    """Dropped: importance ratio out of range."""
    SEQUENCE_REJECTION = 1 << 7
    """Dropped with its response."""
    OPSM = 1 << 8
    """Dropped with its response."""
    LOW_ENTROPY = 1 << 9
    """Dropped by the 80/20 mask."""
    CLIP_COV = 1 << 10
    """Dropped by Clip-Cov."""
    CLIP_B = 1 << 11
    """Dropped by Clip_B."""
    CLIP_V = 1 << 12
    """Dropped by Clip_V."""
    ERC = 1 << 13
    """Dropped: entropy ratio out of range."""
    KL_COV = 1 << 14
    """Has a KL-Cov penalty."""
    SATURATED = 1 << 15
    """The log ratio is beyond the overflow clamp, so the token has no gradient."""
    MATCHED = 1 << 16
    """Dropped by a coin, for a token that clipping would have dropped on the same side."""


@cache
def rule_names(flags: int) -> str:
    """'clip_high+tis'; '' where no rule acted."""
    return "+".join(rule.name.lower() for rule in Rule if flags & rule and rule.name)


@cache
def rule_flags(names: str) -> int:
    """The flags that `rule_names` calls so. ValueError for others."""
    flags = 0
    for name in filter(None, names.split("+")):
        try:
            flags |= Rule[name.upper()]
        except KeyError:
            raise ValueError(f"no rule is called {name!r}; there are {', '.join(map(rule_names, Rule))}") from None
    return int(flags)
