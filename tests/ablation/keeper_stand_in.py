"""`python -m tests.ablation.keeper_stand_in DIRECTORY JOURNAL BEHAVIOUR`: a keeper's process that keeps nothing.

It ends as one does: told so, or when nobody holds the other end of its standard input. Behaviour, as JSON: end_s (how
long its end takes), stubborn (SIGTERM does not end it). JOURNAL gets a line when it begins and when it ends.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main(directory: Path, journal: Path, behaviour: dict[str, Any]) -> int:
    def note(what: str) -> None:
        with journal.open("a") as file:
            file.write(f"{what} {directory.name} {time.monotonic()}\n")

    told = threading.Event()

    def read_to_end() -> None:
        while os.read(0, 4096):
            pass
        told.set()

    signal.signal(signal.SIGTERM, lambda *_: None if behaviour.get("stubborn") else told.set())
    note("keep")
    (directory / "pid").write_text(str(os.getpid()))
    threading.Thread(target=read_to_end, daemon=True).start()
    while not told.wait(0.05):  # in turns, in which signals are heard
        pass
    time.sleep(behaviour.get("end_s", 0.2))
    note("kept")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
