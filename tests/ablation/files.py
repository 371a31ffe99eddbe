"""An ablation's file over a small configuration, both in one folder."""

from pathlib import Path

from tests.config.text import SMALL

GRID = """
name = "clip"
base = "base.toml"
seeds = [0, 1]
[grid]
objective.clip.low = [0.2, 1.0]
objective.clip.high = [0.28, inf]
"""


def write_ablation(folder: Path, text: str = GRID, *, base: str = SMALL, **fragments: str) -> Path:
    """folder/ablation.toml, beside base.toml and a NAME.toml for each fragment."""
    (folder / "base.toml").write_text(base, encoding="utf-8")
    for name, content in fragments.items():
        (folder / f"{name}.toml").write_text(content, encoding="utf-8")
    path = folder / "ablation.toml"
    path.write_text(text, encoding="utf-8")
    return path
