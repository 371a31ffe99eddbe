"""What a part is given, and how it tells what it found: line by line into a file, so that nothing is lost when it is
ended."""

import faulthandler
import importlib
import json
import math
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """From the program that starts a part; crosses as JSON."""

    module: str
    scratch: str
    """A directory that goes with the part."""
    deadline: float
    """Unix seconds."""
    gpus: int
    shape: str

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Check:
    """One part's run."""

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings
        self.gpus = settings.gpus
        self.small = settings.gpus == 0
        """Without a GPU: sizes for a CPU and for Triton's interpreter."""
        self.scratch = Path(settings.scratch)

    @property
    def device(self) -> str:
        """The device type that tensors are on."""
        return "cpu" if self.small else "cuda"

    @property
    def left_s(self) -> float:
        """Until the part is ended."""
        return self.settings.deadline - time.time()

    def row(self, **values: Any) -> None:
        """A measurement."""
        self._write("row", values)

    def say(self, text: str) -> None:
        """A line for the table."""
        self._write("said", text)

    def wrong(self, text: str) -> None:
        """Something is not as it must be: the part fails, and goes on."""
        self._write("wrong", text)

    def judge(self, label: str, errors: dict[str, tuple[float, float]], **values: Any) -> bool:
        """A row of errors {name: (found, at most)}; one above its limit, or NaN, is wrong."""
        beyond = {name: pair for name, pair in errors.items() if not pair[0] <= pair[1]}
        found = {name: value if math.isfinite(value) else str(value) for name, (value, _) in errors.items()}
        self.row(case=label, **values, **found, ok=not beyond)
        if beyond:
            said = ", ".join(f"{name} {found:.2g} (at most {limit:.2g})" for name, (found, limit) in beyond.items())
            self.wrong(f"{label}: {said}")
        return not beyond

    def attempt(self, label: str, work: Any, *args: Any, need_s: float = 0.0) -> Any:
        """`work(*args)`; what it raises is wrong and the part goes on. Not begun when less than `need_s` is left."""
        if self.left_s < need_s:
            self.wrong(f"{label}: not begun, {self.left_s:.0f} s were left and it may need {need_s:.0f}")
            return None
        try:
            return work(*args)
        except Exception as error:
            traceback.print_exc()
            self.wrong(f"{label}: {type(error).__name__}: {str(error)[-1500:]}")
            return None

    def _write(self, kind: str, value: Any) -> None:
        with (self.scratch / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({kind: value}) + "\n")


def run_part(name: str, settings: CheckSettings) -> int:
    """In the part's own process; the exit code."""
    print(f"part {name}: {settings.module}", flush=True)
    check = Check(settings)
    # A part that hangs says in its log where.
    faulthandler.dump_traceback_later(max(1.0, check.left_s - 2.0))
    importlib.import_module(settings.module).run(check)
    faulthandler.cancel_dump_traceback_later()
    return 0
