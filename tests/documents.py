"""What the documents show: blocks of README files, and the commands in comments."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = ("make", "megarl", ".venv/bin/megarl", ".venv/bin/pip", "python3.11")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first fence."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"

    @property
    def kind(self) -> str:
        """ "shell", "session" (commands after "$ " and what they print), "output", or the language; ValueError for a
        block that is none of these: nobody would run it."""
        if self.language:
            return "output" if self.language == "text" else self.language
        lines = [line for line in self.text.splitlines() if line.strip()]
        if lines[0].startswith("$ "):
            return "session"
        if lines[0].lstrip().startswith("-- ") or ": 1 problem" in lines[0]:
            return "output"
        words = {line.split()[0] for line in lines if not line.startswith("#")}
        if all(word in (*COMMANDS, "for", "done") or re.fullmatch(r"[A-Z]+=\S+", word) for word in words):
            return "shell"
        raise ValueError(f"{self}: neither commands nor output: {lines[0]!r}")


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a Markdown file, in order, their own indentation taken away."""
    blocks: list[Block] = []
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.fullmatch(r"( *)```(\w*)", line)
        if fence and opened is None:
            opened, lines = (number, fence[1], fence[2]), []
        elif fence and opened is not None:
            blocks.append(Block(path, opened[0], opened[2], "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened[1]))
    assert opened is None, f"{path}: a block that never ends"
    return blocks


def commands_in_comments(path: Path) -> list[str]:
    """The `megarl ...` and `hf download ...` commands in a TOML file's comments."""
    lines = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return [line for line in lines if line.startswith(("megarl ", "hf download "))]


def overrides_in_comments(path: Path) -> list[list[str]]:
    """The a.b=value words of each comment line that is not a command."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.lstrip("# ").startswith("megarl "):
            words = [word.rstrip(".,;)") if "'" not in word else word.strip("'.") for word in line.split()]
            found.append([word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+=\S+", word)])
    return [words for words in found if words]
