"""Markdown of templates, set as the repository's is: prose and lists in lines of up to 120 characters."""

import re
import textwrap

WIDTH = 120
_ITEM = re.compile(r"( *)(\* |- |\d+\. )")


def wrap(text: str) -> str:
    """Paragraphs and list items set anew; tables, headings, fences and pictures as they are; no two empty lines."""
    lines: list[str] = []
    paragraph: list[str] = []
    in_fence = False

    def flush() -> None:
        lines.extend(_set(paragraph))
        paragraph.clear()

    for line in map(str.rstrip, text.splitlines()):
        if line.startswith("```"):
            flush()
            in_fence = not in_fence
            lines.append(line)
        elif in_fence or line.startswith(("|", "#", "![", "<")):
            flush()
            lines.append(line)
        elif not line:
            flush()
            if lines and lines[-1]:
                lines.append("")
        else:
            if _ITEM.match(line):
                flush()
            paragraph.append(line)
    flush()
    return "\n".join(lines).strip("\n") + "\n"


def _set(paragraph: list[str]) -> list[str]:
    if not paragraph:
        return []
    item = _ITEM.match(paragraph[0])
    hang = " " * len(item.group(0)) if item else ""
    first = item.group(0) if item else ""
    words = " ".join([paragraph[0].removeprefix(first), *paragraph[1:]])
    return textwrap.wrap(
        " ".join(words.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
