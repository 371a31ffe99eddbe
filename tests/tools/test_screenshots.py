"""Pictures of a page: how they are kept small, and what is said where they cannot be made."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import screenshots
from chromium import NAMES, find_chromium
from PIL import Image


def png_of(pixels: np.ndarray) -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def test_a_picture_has_a_palette_only_where_it_would_be_too_large() -> None:
    plain = np.zeros((200, 300, 3), np.uint8)
    plain[:, :, 0] = np.arange(200)[:, None]
    plain[:, :, 1] = np.arange(300) % 256
    with Image.open(io.BytesIO(screenshots.shrink(png_of(plain)))) as small:
        assert small.mode == "RGB"
        assert (np.asarray(small) == plain).all()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    with Image.open(io.BytesIO(screenshots.shrink(png_of(noise)))) as large:
        assert large.mode == "P"
        assert large.size == (300, 300)


def test_a_run_without_a_page_is_told_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["screenshots.py", str(tmp_path), "--to", str(tmp_path / "images")])
    with pytest.raises(SystemExit, match=rf"{tmp_path}/report.html is missing: megarl report {tmp_path}"):
        screenshots.main()
    assert not (tmp_path / "images").exists()


def test_the_browser_is_the_one_that_is_named_or_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MEGARL_CHROMIUM", raising=False)
    assert find_chromium() is None
    with pytest.raises(SystemExit, match="no Chromium: PATH has none of chromium, "), screenshots.open_chromium():
        pass
    program = tmp_path / NAMES[1]
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_chromium() == str(program)
    monkeypatch.setenv("MEGARL_CHROMIUM", "/elsewhere")
    assert find_chromium() == "/elsewhere"
