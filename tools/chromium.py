"""The Chromium of this machine, for who looks at megarl's pages: tests and `screenshots.py`. Nothing is fetched."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "MEGARL_CHROMIUM"
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
"""A container's root has no sandbox, and its /dev/shm is too small for a browser."""


def find_chromium() -> str | None:
    """The path that MEGARL_CHROMIUM gives, or else the first of `NAMES` that PATH has; None without one."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Why there is none."""
    return f"no Chromium: PATH has none of {', '.join(NAMES)}, and {VARIABLE} names none"
