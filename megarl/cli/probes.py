"""Code that is tried in a process of its own, because it imports heavy packages, may crash, and may hang.

Probes of one chain share a process and its imports, one after the other: four packages that each import torch take
half the time so. One that ends the process is what failed; the rest goes on in a new one. `python -m megarl.cli.probes`
is that process: it reads a line of JSON for each probe and answers with another.
"""

import contextlib
import io
import json
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import IO, Any

from megarl.cli.findings import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Python code whose last printed line is the answer; an exception is a failure."""

    name: str
    code: str
    timeout_s: float


class ProbeChain:
    """Runs probes in the background, in the order in which they are added; `answers` has a future for each by name,
    which never raises. The process ends when `close` was called and all are answered."""

    def __init__(self, probes: Iterable[Probe] = ()) -> None:
        self.answers: dict[str, Future[Answer]] = {}
        self._waiting: queue.SimpleQueue[Probe | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
        self.add(probes)
        self._thread.start()

    def add(self, probes: Iterable[Probe]) -> None:
        """Try these after the others."""
        for probe in probes:
            self.answers[probe.name] = Future()
            self._waiting.put(probe)

    def close(self) -> None:
        """No more come."""
        self._waiting.put(None)

    def _run(self) -> None:
        process: _Process | None = None
        while (probe := self._waiting.get()) is not None:
            try:
                process = process or _Process()
                answer, lives = process.ask(probe)
            except Exception as error:
                answer, lives = Answer(succeeded=False, text=f"{type(error).__name__}: {error}"), False
            if not lives:
                if process:
                    process.end()
                process = None
            self.answers[probe.name].set_result(answer)
        if process:
            process.end()


class _Process:
    """One process that tries probes until it ends or is over its time."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megarl.cli.probes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def ask(self, probe: Probe) -> tuple[Answer, bool]:
        """The answer, and whether the process can be asked again."""
        self._input.write(json.dumps(asdict(probe)).encode() + b"\n")
        self._input.flush()
        try:
            line = self._lines.get(timeout=probe.timeout_s)
        except queue.Empty:
            return Answer(succeeded=False, text=f"no answer after {probe.timeout_s:g} s"), False
        if line:
            return Answer(**json.loads(line)), True
        return Answer(succeeded=False, text=self._describe_end()), False

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._input.close()
        self._errors.close()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(b"")

    def _describe_end(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"killed by signal {-code}"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {code}"


def try_code(code: str, namespace: dict[str, Any]) -> Answer:
    """Run a probe's code here; the answer is the last line it prints."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(code, namespace)
    except Exception as error:
        text = traceback.format_exception_only(error)[-1].strip()
        return Answer(succeeded=False, text=text.splitlines()[-1])
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return Answer(succeeded=True, text=lines[-1].strip() if lines else "")


def main() -> None:
    """Try the probes that come on standard input; a JSON line for each."""
    namespace: dict[str, Any] = {}
    answers = sys.stdout
    for line in sys.stdin:
        print(json.dumps(asdict(try_code(json.loads(line)["code"], namespace))), file=answers, flush=True)


if __name__ == "__main__":
    main()
