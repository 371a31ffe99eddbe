"""A headless Chromium for pages that work offline: every request but that for the page itself, and every complaint of
the browser, is noted, and the page must end with none.

A test takes the fixture `visit` and calls `visit(path, ...)`; what is not clean fails it. Outside tests/report a
conftest has to import `browser` and `visit`.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from chromium import ARGUMENTS, find_chromium, missing

Scheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of a file; skips where there is none. Not for longer: as long as playwright is open, an
    event loop runs in this thread, and no other test could run one."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(missing())
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield started
        started.close()


@dataclass(slots=True)
class Visit:
    """A page that is open, and what it did that it must not."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    """Messages of the console, errors of scripts, requests."""

    def width_beyond(self) -> int:
        """Pixels by which the page is wider than its window: what one has to scroll sideways for."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def serious_violations(self) -> list[str]:
        """What axe-core finds of serious and critical violations of WCAG 2 A and AA, with where."""
        from axe_playwright_python.sync_playwright import Axe

        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        found = Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}}).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visitor]:
    """visit(path, scheme="light", width=1280, height=900) opens a file of the disk in a window of its own."""
    visits: list[Visit] = []

    def open_file(path: Path, *, scheme: Scheme = "light", width: int = 1280, height: int = 900) -> Visit:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        context.set_default_timeout(10_000)
        made = Visit(context.new_page())
        address = path.resolve().as_uri()

        def route(request: Any) -> None:
            if request.request.url == address:
                request.continue_()
            else:
                made.complaints.append(f"request for {request.request.url}")
                request.abort()

        context.route("**/*", route)
        made.page.on("console", lambda message: made.complaints.append(f"console {message.type}: {message.text}"))
        made.page.on("pageerror", lambda error: made.complaints.append(f"script: {error}"))
        made.page.on("dialog", lambda dialog: (made.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        visits.append(made)
        made.page.goto(address)
        return made

    yield open_file
    complaints = [line for made in visits for line in made.complaints]
    for made in visits:
        with suppress(Exception):  # a page that crashed is told of by its test
            made.page.context.close()
    assert complaints == []
