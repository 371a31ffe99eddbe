"""A page that is built again by another process when what it shows has changed."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from megarl.report.rebuilding import Builder, Rebuilding
from megarl.report.serving import LivePage


def build(runs: tuple[Path, ...], page: Path) -> None:
    """The page is what the first "run" holds; some of it is instructions."""
    text = runs[0].read_text()
    if text == "die":
        os._exit(3)
    if text == "slow":
        time.sleep(60)
    if text == "bad":
        raise ValueError("no such metric")
    page.write_text(f"<body>{text} by {os.getpid()}</body>")


def shown(live: LivePage) -> str:
    return live.get()[0].decode().partition("</body>")[0]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_page_follows_what_it_shows(tmp_path: Path) -> None:
    run, page, live, told = tmp_path / "run", tmp_path / "page.html", LivePage(), list[str]()
    run.write_text("bad")
    ended = threading.Event()
    with Builder(build, (run,), page) as builder:
        rebuilding = Rebuilding(
            live=live, builder=builder, page=page, look=run.read_text, tell=told.append, every_s=0.05
        )
        thread = threading.Thread(target=rebuilding.run, args=(ended,))
        thread.start()
        try:
            wait_for(lambda: "cannot be built yet: ValueError: no such metric" in shown(live))
            run.write_text("first")
            wait_for(lambda: "first by" in shown(live))
            assert f"by {os.getpid()}" not in shown(live)
            run.write_text("bad")
            wait_for(lambda: len(told) == 3)
            assert "first by" in shown(live)  # the page before stays
            run.write_text("die")
            wait_for(lambda: told[-1] == "not built: the process that builds it has died")
            run.write_text("second")
            wait_for(lambda: "second by" in shown(live))
            tag, count = live.get()[1], len(told)
            time.sleep(1.5)  # longer than it takes to look again
            assert (live.get()[1], len(told)) == (tag, count)  # nothing changed, nothing is built
        finally:
            ended.set()
            thread.join(timeout=30)
    assert told[0] == "not built: ValueError: no such metric"
    assert told[1].startswith("built in ")
    assert not thread.is_alive()


def test_a_page_is_not_built_more_often_than_asked(tmp_path: Path) -> None:
    run, page, live, times = tmp_path / "run", tmp_path / "page.html", LivePage(), list[float]()
    run.write_text("x")
    ended = threading.Event()
    counter = iter(range(10**9))
    with Builder(build, (run,), page) as builder:
        rebuilding = Rebuilding(
            live=live, builder=builder, page=page, look=lambda: next(counter),
            tell=lambda _: times.append(time.monotonic()), every_s=0.5,
        )  # fmt: skip
        thread = threading.Thread(target=rebuilding.run, args=(ended,))
        thread.start()
        wait_for(lambda: len(times) == 4)
        ended.set()
        thread.join(timeout=30)
    assert all(later - earlier > 0.4 for earlier, later in itertools.pairwise(times[1:]))


def test_it_ends_in_the_middle_of_a_page(tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    run.write_text("slow")
    builder = Builder(build, (run,), page)
    problems = list[str | None]()
    thread = threading.Thread(target=lambda: problems.append(builder.build()))
    thread.start()
    wait_for(lambda: builder.pid is not None)
    time.sleep(0.5)
    began_s = time.monotonic()
    builder.end()
    thread.join(timeout=10)
    assert time.monotonic() - began_s < 5
    assert problems == ["the process that builds it has died"]
