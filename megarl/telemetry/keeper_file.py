"""What a keeper says of itself in its directory: a process that keeps Ray and vLLM engines between runs.

The runs of an ablation that have engines of one shape use them one after the other (`runtime.keeper`). A keeper ends
when whoever started it says so, and by itself when neither that process nor a run holds the pipe that it reads.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import ProcessMark

KEEPER_VARIABLE = "MEGARL_KEEPER"
"""In the environment of a run that uses a keeper: its directory."""
KEEPER_PROCESS_VARIABLE = "MEGARL_KEEPER_PROCESS"
"""Likewise: the mark of the keeper's process, for as long as it has not said anything itself."""
KEEPER_FILE = "keeper.json"

KeeperStatus = Literal["starting", "ready", "failed", "ending"]
"""failed: Ray did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperFacts:
    """How it stands."""

    status: KeeperStatus
    process: ProcessMark
    owner: ProcessMark
    """Who started it."""
    address: str = ""
    """Of its Ray, host:port; nothing until it is ready."""
    problem: str = ""
    """Why it has failed."""
    refused: bool = False
    """Whether it failed by what the configuration asks for, which another attempt would ask for too."""

    def write(self, directory: Path) -> None:
        """Replace keeper.json, whole."""
        write_text_atomically(directory / KEEPER_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """None where there is none yet. ValueError where it is damaged."""
        path = directory / KEEPER_FILE
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            marks = {name: ProcessMark.from_json(facts[name]) for name in ("process", "owner")}
            return cls(**(facts | marks))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
