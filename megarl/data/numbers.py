"""Numbers of a data set as text that a person would write: a model is asked for 0.00001, not for 1e-05."""

import math
from decimal import Decimal


def exact_text(value: int | float | Decimal) -> str:
    """The number in plain digits: 1e-05 is "0.00001", 1e16 is "10000000000000000", 0.10 as a Decimal is "0.10".

    A float's digits are the fewest that give it back (0.1 is "0.1"), and a whole one keeps its ".0" only below 1e16,
    where Python writes it: 3.0 is "3.0".

    Raises:
        ValueError: it is not finite, or a bool.
    """
    if isinstance(value, bool) or (not isinstance(value, int) and not math.isfinite(value)):
        raise ValueError(f"expected a finite number, found {value!r}")
    if isinstance(value, int):
        return str(value)
    shortest = repr(value) if isinstance(value, float) else str(value)
    return f"{Decimal(shortest):f}"
