"""What a policy rank did for one publication, in bytes and seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """One rank's part."""

    version: int
    messages: int
    bytes: int
    """Handed to the wire, packed into workers' memory or read by workers where they lie; headers left out."""
    dense_bytes: int
    """What they would have been without leaving out what did not change."""
    num_changed: int
    """Elements that differ from the last publication, of `num_compared` that were looked at."""
    num_compared: int
    ready_s: float
    """Waiting for the workers to begin."""
    pack_s: float
    """Copying out of the parameters, and checksums where one pass does both; comparing, coding."""
    checksum_s: float
    """Checksums that are a pass of their own: on a GPU, or where elements were rounded."""
    wire_s: float
    """Waiting for room in flight and, at the end, for every worker to have taken and checked everything."""


class Tally:
    """Counts up to a report."""

    def __init__(self) -> None:
        self._messages = self._bytes = self._dense_bytes = self._changed = self._compared = 0
        self._seconds = {"ready_s": 0.0, "pack_s": 0.0, "checksum_s": 0.0, "wire_s": 0.0}

    def sent(self, num_bytes: int, dense_bytes: int) -> None:
        """One message."""
        self._messages += 1
        self._bytes += num_bytes
        self._dense_bytes += dense_bytes

    def compared(self, num_changed: int, num_compared: int) -> None:
        """Elements of one place."""
        self._changed += num_changed
        self._compared += num_compared

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the seconds within to `name`, a field of the report."""
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def report(self, version: int) -> PublishReport:
        """The counts so far."""
        return PublishReport(
            version=version,
            messages=self._messages,
            bytes=self._bytes,
            dense_bytes=self._dense_bytes,
            num_changed=self._changed,
            num_compared=self._compared,
            **self._seconds,
        )
