"""What a page holds, read back from its HTML."""

import json
import re
from html.parser import HTMLParser
from typing import Any


def figures_of(html: str) -> dict[str, Any]:
    """The numbers of its figures by key."""
    found = re.search(r"<script type='application/json' id='figures'>(.*?)</script>", html, re.S)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])["figures"]
    return figures


def line_of(figure: dict[str, Any], label: str) -> dict[str, Any]:
    """A line by its label, its x in place of their number."""
    (line,) = [line for line in figure["lines"] if line["label"] == label]
    return line | {"x": figure["x"][line["x"]]}


class PageReader(HTMLParser):
    """Every tag with its attributes, and the text of cells by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data
