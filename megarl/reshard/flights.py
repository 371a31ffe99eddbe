"""Places whose messages are on their way: no more at once than what receives them holds."""

from collections import deque

from megarl.reshard.plan import NUM_SLOTS
from megarl.reshard.tally import Tally
from megarl.reshard.wire import Flight


class PlaceFlights:
    """Of a sender, in the order in which it sent them; at most `NUM_SLOTS` places."""

    def __init__(self) -> None:
        self._places: deque[list[Flight]] = deque()

    def begin(self, tally: Tally) -> list[Flight]:
        """A new place's, to be filled with one for each receiver; waits until there is room for it. Raises
        TransportError when a peer is gone or too slow."""
        with tally.time("wire_s"):
            while len(self._places) >= NUM_SLOTS:
                self._land_first()
        flights: list[Flight] = []
        self._places.append(flights)
        return flights

    def land(self, tally: Tally) -> None:
        """Wait for all. Raises as `begin`."""
        with tally.time("wire_s"):
            while self._places:
                self._land_first()

    def forget(self) -> None:
        """Wait for none of them any more."""
        self._places.clear()

    def _land_first(self) -> None:
        for flight in self._places.popleft():
            flight.land()
