"""Do the tests notice? Small faults, put into a copy of the tree one at a time, and whether the tests named fail.

    python tools/mutants.py                    every mutant of tools/mutants.toml, a table, 1 if one survives
    python tools/mutants.py --only placement   those whose name or file contains a word
    python tools/mutants.py --json             for programs: {"mutants": [{"name", "file", "result", "seconds"}]}

A mutant names a whole source line, what becomes of it, and the tests that must fail. A line that is no longer there
exactly once ends the program before anything runs: whoever changes the line moves the mutant with it.

mutmut and cosmic-ray find mutants by themselves and are not used: they change every operator of a file, thousands of
runs of which each imports torch and Ray for 10 seconds, and leave it to the reader to tell the equivalent ones from
those that matter. Here each is a fault that somebody could make, and the list is short enough to be run by hand.

Exit code: 0 every mutant is killed, 1 one survives, 2 the list, a test file or the tree itself is not in order.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
_COPIED = ("megarl", "tests", "tools", "configs", "cluster", "pyproject.toml")
_TESTS_FAILED = 1

Result = Literal["killed", "timed out", "survived"]


class ListError(Exception):
    """The list does not fit the tree, or tests fail without a mutant; the text is for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault."""

    name: str
    """What goes wrong."""
    file: str
    line: str
    """As it is in the file, without its indentation."""
    becomes: str
    tests: list[str]
    """Test files, of which one must fail."""


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    file: str
    result: Result
    seconds: float


def read_mutants(path: Path, root: Path) -> list[Mutant]:
    """The list; ListError with everything in it that does not fit the tree."""
    mutants = [Mutant(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]
    problems = [problem for mutant in mutants for problem in _problems(mutant, root)]
    names = [mutant.name for mutant in mutants]
    problems += [f"{name!r} is there twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if problems:
        raise ListError("\n".join(problems))
    return mutants


def _problems(mutant: Mutant, root: Path) -> list[str]:
    file = root / mutant.file
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    count = sum(line.strip() == mutant.line for line in lines)
    problems = [f"{mutant.name}: no test file {test}" for test in mutant.tests if not (root / test).is_file()]
    if count != 1:
        problems.append(f"{mutant.name}: expected once in {mutant.file}, found {count} times: {mutant.line}")
    if mutant.line == mutant.becomes or not mutant.tests:
        problems.append(f"{mutant.name}: it changes nothing, or names no test file")
    return problems


def mutate(text: str, mutant: Mutant) -> str:
    """The source with the one line replaced, its indentation kept."""
    lines = text.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.strip() == mutant.line)
    indentation = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at] = f"{indentation}{mutant.becomes}\n"
    return "".join(lines)


def copy_tree(root: Path, copy: Path) -> None:
    """What tests need of the tree, without what Python has compiled."""
    for name in _COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)


def run_tests(copy: Path, tests: Sequence[str], *, timeout_s: float) -> tuple[int | None, str]:
    """pytest's exit code, None after `timeout_s`, and its output."""
    # Nothing is compiled to files: a mutant may have the size and, to the second, the time of the file it replaces.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def try_mutant(mutant: Mutant, copy: Path, *, timeout_s: float) -> Outcome:
    """Whether its tests fail; ListError where they cannot be run."""
    file = copy / mutant.file
    original = file.read_text(encoding="utf-8")
    started = time.monotonic()
    try:
        file.write_text(mutate(original, mutant), encoding="utf-8")
        code, output = run_tests(copy, mutant.tests, timeout_s=timeout_s)
    finally:
        file.write_text(original, encoding="utf-8")
    results: dict[int | None, Result] = {0: "survived", _TESTS_FAILED: "killed", None: "timed out"}
    if code not in results:
        raise ListError(f"{mutant.name}: pytest ended with {code}, the mutant is no program:\n{output[-2000:]}")
    return Outcome(mutant.name, mutant.file, results[code], time.monotonic() - started)


def run(mutants: Sequence[Mutant], root: Path, *, timeout_s: float, progress: Console) -> list[Outcome]:
    """Try every mutant, after the tests without any; ListError where those fail."""
    with tempfile.TemporaryDirectory(prefix="megarl-mutants-") as directory:
        copy = Path(directory)
        copy_tree(root, copy)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        code, output = run_tests(copy, tests, timeout_s=timeout_s * len(tests))
        if code != 0:
            raise ListError(f"the tests do not pass without a mutant (pytest: {code}):\n{output[-4000:]}")
        outcomes = []
        for mutant in mutants:
            outcomes.append(try_mutant(mutant, copy, timeout_s=timeout_s))
            progress.print(f"{outcomes[-1].result}: {mutant.name}", highlight=False)
        return outcomes


def print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("mutant", "file", "result"):
        table.add_column(column)
    table.add_column("s", justify="right")
    for outcome in outcomes:
        style = "bold red" if outcome.result == "survived" else None
        table.add_row(outcome.name, outcome.file, outcome.result, f"{outcome.seconds:.0f}", style=style)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=ROOT / "tools" / "mutants.toml", help="the mutants")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree")
    parser.add_argument("--only", default="", help="mutants whose name or file contains this")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="of the tests of one mutant; then it is killed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        found = read_mutants(options.list, options.root)
        mutants = [mutant for mutant in found if options.only in mutant.name or options.only in mutant.file]
        outcomes = run(mutants, options.root, timeout_s=options.timeout_s, progress=Console(stderr=True))
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"mutants": [asdict(outcome) for outcome in outcomes]}, indent=1))
    else:
        print_table(Console(), outcomes)
    return int(any(outcome.result == "survived" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
