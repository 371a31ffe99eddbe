"""Paths as the verbs print them."""

from pathlib import Path


def shown_path(path: Path) -> str:
    """Relative to where the person stands, when it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
