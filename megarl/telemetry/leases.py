"""What a process leaves on its machine when it is killed, written down while it lives.

A lease is a directory `megarl-<what>-*` for temporary files with an `owner.json` in it: whose it is, and what else goes
with it (files in /dev/shm, a directory of Ray's). The owner releases it; where the owner was killed, whoever finds the
lease can see that, and remove exactly what was the owner's.
"""

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import DRIVER_VARIABLE, RUN_VARIABLE, WORKER_VARIABLE, ProcessMark

_PREFIX = "megarl-"
_OWNER = "owner.json"
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Lease:
    """A directory for temporary files, of one process."""

    path: Path
    owner: ProcessMark
    driver: ProcessMark
    """Of the run; the owner itself where it is of none."""
    run: str
    """The run directory, or nothing."""
    worker: str = ""
    """Which worker of the run took it, as WORKER_VARIABLE says; nothing where none did."""

    @classmethod
    def take(cls, what: str) -> Self:
        """A new one of this process."""
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-"))
        owner, driver = ProcessMark.of(os.getpid()), os.environ.get(DRIVER_VARIABLE)
        run, worker = os.environ.get(RUN_VARIABLE, ""), os.environ.get(WORKER_VARIABLE, "")
        lease = cls(path, owner, ProcessMark.parse(driver) if driver else owner, run, worker)
        lease.note(())
        return lease

    def note(self, extra: Iterable[Path]) -> None:
        """Everything outside the lease's directory that must go with it; replaces what was noted before."""
        facts = {
            "owner": self.owner.as_json(),
            "driver": self.driver.as_json(),
            "run": self.run,
            "worker": self.worker,
            "extra": sorted(map(str, extra)),
        }
        write_text_atomically(self.path / _OWNER, json.dumps(facts, indent=2) + "\n")

    def extra(self) -> list[Path]:
        """What `note` was told last; nothing where that is gone (many a machine empties its /tmp of old files)."""
        try:
            text = (self.path / _OWNER).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [Path(path) for path in json.loads(text)["extra"]]

    def release(self) -> None:
        """Remove the directory; what was noted besides is the caller's. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)


def find_leases(directory: Path | None = None) -> Iterator[Lease]:
    """Every lease of this user and this machine in `directory` (default: where temporary files go)."""
    for path in sorted((directory or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*/{_OWNER}")):
        try:
            # Neither may be a link, nor another's: anybody may put things where temporary files go.
            found = path.parent.lstat(), path.lstat()
            if any(status.st_uid != os.getuid() or stat.S_ISLNK(status.st_mode) for status in found):
                continue
            facts = json.loads(path.read_text(encoding="utf-8"))
            owner, driver = (ProcessMark.from_json(facts[name]) for name in ("owner", "driver"))
            if owner.standing(age_s=time.time() - found[1].st_mtime) == "elsewhere":
                continue  # the directory is shared with another machine, of whatever name
            yield Lease(path.parent, owner, driver, str(facts["run"]), str(facts.get("worker", "")))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is being released, or is none of ours
