"""Pictures of a run's page for README.md and docs, each below 200 kB.

    megarl report RUN && python tools/screenshots.py RUN [OTHER_RUN] --to docs/images

From RUN/report.html: report.png, reader-light.png, reader-dark.png, reader-phone.png. With OTHER_RUN also
reader-pair.png, the two side by side on a prompt that both have. Needs Chromium and `pip install -e .[dev]`.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chromium import ARGUMENTS, find_chromium, missing

from megarl.report.reader import TokenSource
from megarl.report.token_view import format_token_page

MAX_BYTES = 200_000
COLOURS = 128
"""Of a picture's palette: text and flat areas need no more, and it is a third of the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture: of which part of the page, in which window, after which keys in the reader."""

    name: str
    part: str | None
    """CSS selector at whose top the picture begins; None: the top of the page."""
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"
    scale: float = 1.0
    keys: tuple[str, ...] = ()


SHOTS = (
    Shot(name="report", part=None, width=1200, height=1100),
    Shot(name="reader-light", part="#reader", width=1200, height=780, keys=("r",)),
    Shot(name="reader-dark", part="#reader", width=1200, height=780, scheme="dark", keys=("2", "r")),
    Shot(name="reader-phone", part="#reader", width=360, height=740, scale=1.5, keys=("r",)),
)
PAIR = Shot(name="reader-pair", part="#reader", width=1200, height=780, keys=("r",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run directory with report.html")
    parser.add_argument("other", type=Path, nargs="?", help="a second run, for reader-pair.png")
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    page = arguments.run / "report.html"
    if not page.is_file():
        sys.exit(f"screenshots: {page} is missing: megarl report {arguments.run}")
    arguments.to.mkdir(parents=True, exist_ok=True)
    with open_chromium() as browser:
        for shot in SHOTS:
            take(browser, page, shot, arguments.to)
        if arguments.other:
            with tempfile.TemporaryDirectory() as folder:
                take(browser, write_pair(Path(folder), arguments.run, arguments.other), PAIR, arguments.to)


@contextmanager
def open_chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    if executable is None:
        sys.exit(f"screenshots: {missing()}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


def write_pair(folder: Path, *runs: Path) -> Path:
    """A page with the readers of the runs alone."""
    sources = [TokenSource(name=run.resolve().name, rollouts=run / "rollouts") for run in runs]
    path = folder / "pair.html"
    path.write_text(format_token_page("Two runs", sources), encoding="utf-8")
    return path


def take(browser: Any, page: Path, shot: Shot, folder: Path) -> None:
    """Make the picture. Exits where it is larger than `MAX_BYTES`."""
    context = browser.new_context(
        color_scheme=shot.scheme,
        viewport={"width": shot.width, "height": shot.height},
        device_scale_factor=shot.scale,
    )
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    if shot.part is not None:
        text = tab.locator(".reader-text[aria-busy=false]").first
        text.focus()
        for key in shot.keys:
            tab.keyboard.press(key)
        tab.locator(shot.part).evaluate("part => window.scrollTo(0, part.getBoundingClientRect().top + scrollY - 8)")
    data = shrink(tab.screenshot())
    context.close()
    if len(data) > MAX_BYTES:
        sys.exit(f"screenshots: {shot.name} has {len(data):,} bytes, more than {MAX_BYTES:,}: make its window smaller")
    path = folder / f"{shot.name}.png"
    path.write_bytes(data)
    print(f"{path}  {len(data) / 1000:.0f} kB")


def shrink(png: bytes) -> bytes:
    """The picture with a palette."""
    from PIL import Image

    made = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(made, "PNG", optimize=True)
    return made.getvalue()


if __name__ == "__main__":
    main()
