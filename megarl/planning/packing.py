"""Groups and engines packed into the parts of a cluster, exactly: where there is a way, it is found.

A bin is what a tensor group must lie in: a node, or the nodes of an NVLink domain. An engine lies on one node of it.
How many engines a bin holds beside so many groups does not depend on the other bins, so the best over all of them is
found bin by bin, in bins x groups x (groups of a bin) operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Self

from megarl.planning.resources import Resources, room, without

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NEVER = -(1 << 40)
"""Engines beside groups that do not fit; no sum with it becomes possible."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Nodes that may hold tensor groups together."""

    rooms: Mapping[int, int]
    """Policy ranks that fit on each node, in the nodes' order."""
    costs: tuple[tuple[int, int], ...]
    """(ranks that have no room any more, node) of one engine after the other, the cheapest first and of equal ones that
    of the last node. A node's engines cost ever more, so the first of them are always what fits best."""

    @classmethod
    def of(cls, free: Mapping[int, Resources], *, rank_needs: Resources, engine_needs: Resources) -> Self:
        """free: by node."""
        rooms = {at: room(here, rank_needs) for at, here in free.items()}
        costs: list[tuple[int, int, int]] = []
        for position, (at, here) in enumerate(free.items()):
            left = [
                room(without(here, engine_needs, count), rank_needs) for count in range(room(here, engine_needs) + 1)
            ]
            costs += [(before - after, -position, at) for before, after in pairwise(left)]
        return cls(rooms, tuple((cost, at) for cost, _, at in sorted(costs)))

    def most_engines(self, tensor: int) -> list[int]:
        """Engines that fit beside 0, 1, ... groups, to as many as fit."""
        total = sum(self.rooms.values())
        left = [total - spent for spent in accumulate((cost for cost, _ in self.costs), initial=0)]
        return [sum(ranks >= groups * tensor for ranks in left) - 1 for groups in range(total // tensor + 1)]

    def lay_out(self, *, tensor: int, groups: int, engines: int) -> tuple[list[int], list[int]]:
        """(the node of every rank, group by group, the node of every engine)."""
        rooms = dict(self.rooms)
        taken = self.costs[:engines]
        for cost, at in taken:
            rooms[at] -= cost
        whole: list[list[int]] = []
        rest: list[int] = []
        for at, ranks in rooms.items():  # groups on one node as far as they go
            here = min(ranks // tensor, groups - len(whole))
            whole += [[at] * tensor] * here
            rest += [at] * (ranks - here * tensor)
        over = [rest[first : first + tensor] for first in range(0, (groups - len(whole)) * tensor, tensor)]
        position = {at: number for number, at in enumerate(rooms)}
        laid = sorted([*whole, *over], key=lambda group: [position[at] for at in group])
        return list(chain(*laid)), sorted((at for _, at in taken), key=position.__getitem__)


def pack(
    bins: Sequence[Bin], *, tensor: int, groups: int, engines: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(the node of every policy rank, the node of every engine), as many groups as possible in the first bin, then in
    the next; None where there is no way."""
    most = [each.most_engines(tensor) for each in bins]
    if sum(len(each) - 1 for each in most) < groups or sum(each[0] for each in most) < engines:
        return None
    best = _best_of_rest(most, groups)
    if best[0][groups] < engines:
        return None
    ranks: list[int] = []
    taken: list[int] = []
    for each, beside, rest in zip(bins, most, best[1:], strict=True):
        here = min(groups, len(beside) - 1)
        while rest[groups - here] + beside[here] < engines:
            here -= 1
        mine = max(0, min(beside[here], engines))
        laid = each.lay_out(tensor=tensor, groups=here, engines=mine)
        ranks += laid[0]
        taken += laid[1]
        groups, engines = groups - here, engines - mine
    return tuple(ranks), tuple(taken)


def _best_of_rest(most: Sequence[Sequence[int]], groups: int) -> "list[NDArray[np.int64]]":
    """By bin, and after the last: the most engines that it and all after it hold, beside 0, 1, ... `groups` groups."""
    import numpy as np  # here: `megarl show` only names what this module places

    best = [np.full(groups + 1, _NEVER, dtype=np.int64)]
    best[0][0] = 0
    for beside in reversed(most):
        now = np.full(groups + 1, _NEVER, dtype=np.int64)
        for here, engines in enumerate(beside[: groups + 1]):
            np.maximum(now[here:], best[-1][: groups + 1 - here] + engines, out=now[here:])
        best.append(now)
    return best[::-1]
