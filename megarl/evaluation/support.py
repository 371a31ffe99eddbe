"""What a trained model solves that its base does not, and the reverse (arXiv 2507.14843, "The Invisible Leash").

A problem is in a model's empirical support when one of its n responses is correct; both models have the same n, since
more samples always find more. The paper's names: preservation (both solve it), shrinkage (the base alone), expansion
(the trained model alone), out of support (neither).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Problems by who solves them."""

    preserved: tuple[int, ...]
    lost: tuple[int, ...]
    """Shrinkage: the base solves them, the trained model no longer."""
    gained: tuple[int, ...]
    """Expansion: the trained model solves them, the base did not."""
    unsolved: tuple[int, ...]

    @property
    def retention(self) -> float:
        """SRR: share of what the base solves that the trained model still solves; NaN where it solves nothing."""
        return _share(len(self.preserved), len(self.preserved) + len(self.lost))

    @property
    def discovery(self) -> float:
        """NDR: share of what the trained model solves that the base did not; NaN where it solves nothing."""
        return _share(len(self.gained), len(self.preserved) + len(self.gained))

    @property
    def net_change(self) -> float:
        """NSCR: (gained - lost) over all that either solves, in [-1, 1]; NaN where neither solves anything."""
        return _share(len(self.gained) - len(self.lost), len(self.preserved) + len(self.gained) + len(self.lost))


def compare_support(trained_PN: NDArray[np.bool_], base_PN: NDArray[np.bool_], problems: Sequence[int]) -> Support:
    """From the verdicts of both models, [problems, samples]; `problems` names the rows.

    ValueError where they have not the same problems and equally many samples.
    """
    if trained_PN.shape != base_PN.shape or len(problems) != len(trained_PN):
        raise ValueError(
            f"support of {trained_PN.shape} and {base_PN.shape} verdicts on {len(problems)} problems: expected the "
            "same problems and equally many samples of each"
        )
    by_trained_P, by_base_P = (np.asarray(solved_PN.any(axis=1)) for solved_PN in (trained_PN, base_PN))

    def those(trained: bool, base: bool) -> tuple[int, ...]:
        found = np.flatnonzero((by_trained_P == trained) & (by_base_P == base))
        return tuple(problems[row] for row in found.tolist())

    return Support(
        preserved=those(True, True), lost=those(False, True), gained=those(True, False), unsolved=those(False, False)
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
