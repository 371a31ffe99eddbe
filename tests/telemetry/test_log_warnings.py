"""Warnings are found in logs as `setup_logging` has them written."""

import subprocess
import sys
from pathlib import Path

from megarl.telemetry.log_warnings import LoggedWarning, LogWarnings, parse_warning

SPEAKING = """
import logging, sys, warnings
from pathlib import Path
from megarl.telemetry.logs import redirect_output, setup_logging
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
path = setup_logging("policy", rank, folder)
redirect_output(path)
log = logging.getLogger("megarl.some")
log.info("not this")
log.warning("the disk is %s", "full")
log.error("two lines:\\nthe second")
print("nor this")
warnings.warn("an old name", FutureWarning)
"""


def speak(folder: Path, rank: int) -> None:
    subprocess.run([sys.executable, "-c", SPEAKING, str(folder), str(rank)], check=True, capture_output=True)


def line(time: str, who: str, text: str, level: str = "WARNING") -> str:
    return f"2026-11-29 {time},123 {level:<7} {who} megarl.x: {text}\n"


def test_what_processes_write(tmp_path: Path) -> None:
    warnings = LogWarnings(tmp_path)
    warnings.refresh()
    assert warnings.last(5) == []
    speak(tmp_path, 0)
    speak(tmp_path, 3)
    warnings.refresh()
    found = warnings.last(5)
    assert [(one.level, one.who) for one in found] == [
        ("WARNING", ("policy-0", "policy-3")),
        ("ERROR", ("policy-0", "policy-3")),
        ("WARNING", ("policy-0", "policy-3")),
    ]
    assert [one.text for one in found] == ["the disk is full", "two lines:", "<string>:13: FutureWarning: an old name"]


def test_the_newest_are_last_and_equal_ones_are_one(tmp_path: Path) -> None:
    (tmp_path / "policy-0.log").write_text(line("10:00:01", "policy-0", "a") + line("10:00:05", "policy-0", "b"))
    (tmp_path / "rollout-0.log").write_text(line("10:00:03", "rollout-0", "c", "ERROR"))
    warnings = LogWarnings(tmp_path)
    warnings.refresh()
    assert [one.text for one in warnings.last(9)] == ["a", "c", "b"]
    assert [one.text for one in warnings.last(2)] == ["c", "b"]
    assert warnings.last(0) == []
    with (tmp_path / "policy-0.log").open("a") as file:
        file.write(line("10:00:07", "policy-0", "a"))
    warnings.refresh()
    assert [(one.time, one.text) for one in warnings.last(9)] == [
        ("10:00:03", "c"),
        ("10:00:05", "b"),
        ("10:00:07", "a"),
    ]


def test_a_log_that_was_replaced_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "policy-0.log"
    path.write_text(line("10:00:01", "policy-0", "a"))
    warnings = LogWarnings(tmp_path)
    warnings.refresh()
    path.unlink()
    path.write_text(line("10:00:02", "policy-0", "d"))
    warnings.refresh()
    assert [one.text for one in warnings.last(9)] == ["d"]


def test_the_folder_of_a_python_source_is_left_out() -> None:
    def parse(logger: str, text: str) -> LoggedWarning | None:
        return parse_warning(f"2026-11-29 10:00:00,000 WARNING policy-1 {logger}: {text}".encode())

    assert parse("py.warnings", "/a/b c/d.py:12: UserWarning: see /e/f.py:1: x") == LoggedWarning(
        "2026-11-29", "10:00:00", ("policy-1",), "WARNING", "d.py:12: UserWarning: see /e/f.py:1: x"
    )
    found = parse("megarl.x", "/a/b.py:12: it stays")
    assert found is not None
    assert found.text == "/a/b.py:12: it stays"
    assert parse_warning(b"2026-11-29 10:00:00,000 INFO    policy-1 megarl.x: no") is None
    assert parse_warning(b"\xff\xfe") is None
