"""The documents' commands work as printed, in a fresh clone: no models, no data, nobody's files.

`megarl` runs as it is, but `train` and `sft` only as far as their configuration loads (`megarl show` with the same
arguments), `convert` as far as it looks for its source, and `make` as a dry run: tests/e2e and the quickstart itself
are their tests. No block goes unlooked at.
"""

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from megarl.config.loader import load_config
from tests.documents import ROOT, Block, blocks_of, commands_in_comments, overrides_in_comments

DOCUMENTS = [ROOT / "README.md", *(ROOT / "configs" / name / "README.md" for name in ("methods", "ablations"))]
BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
MADE = ("models", "runs", "data", "build", "my.toml")
"""What a clone does not have, beside hidden files."""
STAND_IN = """#!/bin/sh
verb="$1"
shift
# A clone has no run to go on with; tests/cli/test_resume*.py and tests/e2e do.
[ "$verb $1" = "train --resume" ] && exit 0
[ "$verb $1" = "ablate --resume" ] && exit 0
case "$verb" in
  train | sft) verb=show ;;
  doctor) [ -n "$WHOLE" ] || verb=show ;;
  theory) [ -n "$WHOLE" ] || exit 0 ;;
  # Their options are read; a clone has nothing to convert, to ask or to train.
  convert | eval) "{python}" -m megarl.cli.main "$verb" "$@" 2>&1 | grep -q "found nothing at"; exit $? ;;
  ablate) "{python}" -m megarl.cli.main ablate "$@" --dry-run 2>&1 | grep -q 'model.path ".*: no such'; exit $? ;;
  submit) "{python}" -m megarl.cli.main submit "$@" 2>&1 | grep -q 'model.path ".*: no such directory'; exit $? ;;
  report) "{python}" -m megarl.cli.main report "$@" 2>&1 | grep -q "megarl report: .* does not exist"; exit $? ;;
  top) "{python}" -m megarl.cli.main top "$@" 2>&1 | grep -q "is neither a run, a job nor an ablation"; exit $? ;;
  status) "{python}" -m megarl.cli.main status "$@" 2>&1 | grep -q "is neither a run, nor a job"; exit $? ;;
esac
"{python}" -m megarl.cli.main "$verb" "$@"
code=$?
# Of what is not in a clone (a model, a GPU), doctor says that it is not there.
[ "$verb" = doctor ] && [ $code -le 1 ] && exit 0
exit $code
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files without what is made from them, and a `megarl` on the PATH."""
    clone = tmp_path_factory.mktemp("clone") / "megarl"
    clone.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in MADE:
            (clone / path.name).symlink_to(path)
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("megarl", ".venv/bin/megarl"):
        program = clone / "bin" / name if name == "megarl" else clone / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(0o755)
    (block,) = (block for block in BLOCKS if block.text.startswith("# my.toml\n"))
    (clone / "my.toml").write_text(block.text)
    return clone


def run_shell(script: str, clone: Path, *, whole: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{clone / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WHOLE": "1" if whole else "",
        "COLUMNS": "400",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def runnable(text: str) -> str:
    """A shell block with make as a dry run, and without what installs packages, whose extras are looked up instead."""
    lines = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            lines.append(shlex.join(["make", "-n", *words[1:]]))
        elif words[:1] == ["python3.11"]:
            assert words[1:] == ["-m", "venv", ".venv"]
        elif words[:1] == [".venv/bin/pip"]:
            extras = words[-1].partition("[")[2].rstrip("]").split(",")
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(extras) <= set(known), extras
        else:
            lines.append(line)
    return "\n".join(lines)


def test_every_block_is_of_a_kind() -> None:
    kinds = [block.kind for block in BLOCKS]
    assert set(kinds) == {"shell", "session", "output", "toml", "python"}
    assert kinds.count("shell") >= 6


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "shell"], ids=str)
def test_commands_work_as_printed(block: Block, clone: Path) -> None:
    # Blocks of one document go on from each other: M stays what an earlier one made it.
    done = run_shell("M=configs/methods\n" + runnable(block.text), clone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.slow
def test_doctor_and_theory_work_as_printed(clone: Path) -> None:
    text = "".join(block.text for block in BLOCKS if block.kind == "shell")
    lines = [line for line in text.splitlines() if line.startswith(("megarl doctor", "megarl theory"))]
    assert lines
    done = run_shell("\n".join(lines), clone, whole=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "session"], ids=str)
def test_sessions_print_what_they_show(block: Block, clone: Path) -> None:
    command, *expected = block.text.removeprefix("$ ").splitlines()
    # head ends before show has written all.
    done = run_shell(f"set +o pipefail\n{command}" if "| head" in command else command, clone)
    said = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    assert said == expected


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind in ("toml", "python")], ids=str)
def test_files_are_of_their_language(block: Block, clone: Path) -> None:
    if block.kind == "python":
        compile(block.text, str(block), "exec")
    elif block.text.startswith("# my.toml\n"):
        load_config(clone / "my.toml")
    else:
        tomllib.loads(block.text)


def test_a_run_file_and_what_it_names_exist() -> None:
    """Paths in the documents' running text."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name in {word.strip("`,.();:") for word in text.split() if word.startswith(("`tools/", "`tests/"))}:
            assert (ROOT / name).exists(), f"{path}: {name}"


# Comments of the configurations.


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_comments(path: Path, clone: Path) -> None:
    for command in commands_in_comments(path):
        words = shlex.split(command.partition(";")[0], comments=True)
        if words[:2] == ["hf", "download"]:
            assert words[3] == "--local-dir"
            assert load_config(path).model.path == words[4]
            assert Path(words[2]).name == Path(words[4]).name
        else:
            done = run_shell(shlex.join(words), clone)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    base = [ROOT / "configs" / "quickstart.toml", str(path)] if path.parent.name == "methods" else [path]
    for overrides in overrides_in_comments(path):
        keys = [override.partition("=")[0] for override in overrides]
        # A line says what goes together, or several values of one key.
        for together in [overrides] if len(set(keys)) == len(keys) else [[override] for override in overrides]:
            load_config(Path(base[0]), [*map(str, base[1:]), *together])
