"""Code that is tried in a process of its own, because it imports heavy packages, may crash, and may hang.

Probes of one chain share a process and its imports, one after the other: four packages that each import torch take
half the time so. One that ends the process is what failed; the rest goes on in a new one. Run as
`python -m megarl.cli.probes`, with the probes as JSON on standard input, it is that process.
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
from collections.abc import Sequence
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


def start_probes(probes: Sequence[Probe]) -> dict[str, Future[Answer]]:
    """Run a chain in the background; the answers by name, each there as soon as it is known. None raises."""
    answers: dict[str, Future[Answer]] = {probe.name: Future() for probe in probes}
    threading.Thread(target=_run_chain, args=(list(probes), answers), name="probes", daemon=True).start()
    return answers


def _run_chain(probes: list[Probe], answers: dict[str, Future[Answer]]) -> None:
    while probes:
        try:
            probes = _run_process(probes, answers)
        except Exception as error:
            answers[probes[0].name].set_result(Answer(succeeded=False, text=f"{type(error).__name__}: {error}"))
            probes = probes[1:]


def _run_process(probes: list[Probe], answers: dict[str, Future[Answer]]) -> list[Probe]:
    """One process, until its end or until a probe is over its time; returns the probes after the one that ended it."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "megarl.cli.probes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            process.stdin.write(json.dumps([asdict(probe) for probe in probes]).encode())
            process.stdin.close()
            lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
            for number, probe in enumerate(probes):
                try:
                    line = lines.get(timeout=probe.timeout_s)
                except queue.Empty:
                    process.kill()
                    failed = Answer(succeeded=False, text=f"no answer after {probe.timeout_s:g} s")
                else:
                    if line:
                        answers[probe.name].set_result(Answer(**json.loads(line)))
                        continue
                    failed = Answer(succeeded=False, text=_describe_end(process.wait(), errors))
                answers[probe.name].set_result(failed)
                return probes[number + 1 :]
    return []


def _read_lines(stream: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _describe_end(code: int, errors: IO[bytes]) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
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
    """Try the probes on standard input; a JSON line for each."""
    namespace: dict[str, Any] = {}
    for probe in json.load(sys.stdin):
        print(json.dumps(asdict(try_code(probe["code"], namespace))), flush=True)


if __name__ == "__main__":
    main()
