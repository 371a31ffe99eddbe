"""docs/results/*.md and their figures, from docs/results/tables alone: `make results`.

    python tools/write_results.py              every document whose tables are stored
    python tools/write_results.py clipping     this one
    python tools/write_results.py --check      write nothing; exit code 1 where a file is other than its tables say

The same tables give the same bytes. `tools/store_results.py` stores tables.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from results.documents import MissingTableError, Written, document_names, missing_tables, write_document

from megarl.telemetry.atomic_file import write_text_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = document_names()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--tables", type=Path, default=RESULTS / "tables", help="default: docs/results/tables")
    parser.add_argument("--into", type=Path, default=RESULTS, help="default: docs/results")
    parser.add_argument("--check", action="store_true", help="compare; write nothing")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in known]:
        sys.exit(f"write_results: no document {unknown[0]!r}; expected {', '.join(known)}")
    problems = []
    for name in given.names or known:
        if not given.names and (missing := missing_tables(name, given.tables)):
            print(f"left out {name}: not stored are {', '.join(missing)}")
            continue
        try:
            written = write_document(name, given.tables)
            if given.check:
                wrong = stale(written, given.into)
                problems += [f"{path} is other than its tables say: make results" for path in wrong]
            else:
                write(written, given.into)
                print(f"written  {given.into / name}.md, figures {len(written.figures)}")
        except (MissingTableError, OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        sys.exit("write_results: " + "\n".join(problems))


def write(written: Written, into: Path) -> None:
    """The document and its figures; figures that it had and has no more go."""
    for path, text in _files(written, into):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, text)
    for path in _left_over(written, into):
        path.unlink()


def stale(written: Written, into: Path) -> list[Path]:
    """Files of the document that are not as they must be."""
    wrong = [path for path, text in _files(written, into) if not path.is_file() or path.read_text("utf-8") != text]
    return wrong + _left_over(written, into)


def _files(written: Written, into: Path) -> Iterable[tuple[Path, str]]:
    yield into / f"{written.name}.md", written.text
    for name, svg in written.figures.items():
        yield into / "figures" / name, svg


def _left_over(written: Written, into: Path) -> list[Path]:
    return sorted(path for path in (into / "figures").glob(f"{written.name}-*.svg") if path.name not in written.figures)


if __name__ == "__main__":
    main()
