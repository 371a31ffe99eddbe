"""The mutants of the list are of this tree, and the program tells killed from survived."""

import json
import subprocess
import sys
from pathlib import Path

import mutants
import pytest

LINE = "return max(values)"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with a test that notices one fault and not another."""
    (tmp_path / "megarl").mkdir()
    (tmp_path / "megarl" / "__init__.py").touch()
    (tmp_path / "megarl" / "code.py").write_text(f"def largest(values):\n    {LINE}\n\n\ndef other():\n    return 1\n")
    (tmp_path / "tests").mkdir()
    test = "from megarl.code import largest\n\n\ndef test():\n    assert largest([1, 2]) == 2\n"
    (tmp_path / "tests" / "test_code.py").write_text(test)
    return tmp_path


def write_list(tree: Path, *entries: tuple[str, str, str]) -> Path:
    """Mutants as (name, line, becomes)."""
    path = tree / "list.toml"
    path.write_text(
        "\n".join(
            f'[[mutant]]\nname = "{name}"\nfile = "megarl/code.py"\nline = "{line}"\nbecomes = "{becomes}"\n'
            'tests = ["tests/test_code.py"]'
            for name, line, becomes in entries
        )
    )
    return path


def run_tool(tree: Path, path: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, mutants.__file__, "--root", str(tree), "--list", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_list_is_of_this_tree() -> None:
    found = mutants.read_mutants(mutants.ROOT / "tools" / "mutants.toml", mutants.ROOT)
    folders = {str(Path(mutant.file).parent) for mutant in found}
    assert {"megarl/runtime", "megarl/controller", "megarl/parallel"} <= folders
    assert len(found) >= 30


def test_a_fault_that_no_test_notices_survives(tree: Path) -> None:
    path = write_list(tree, ("smallest", LINE, "return min(values)"), ("another", "return 1", "return 2"))
    done = run_tool(tree, path, "--json")
    assert done.returncode == 1, done.stderr
    results = {mutant["name"]: mutant["result"] for mutant in json.loads(done.stdout)["mutants"]}
    assert results == {"smallest": "killed", "another": "survived"}
    assert LINE in (tree / "megarl" / "code.py").read_text()  # the tree itself is left alone


def test_faults_that_are_all_noticed(tree: Path) -> None:
    path = write_list(tree, ("smallest", LINE, "return min(values)"), ("another", "return 1", "return 2"))
    done = run_tool(tree, path, "--only", "smallest")
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout


def test_a_fault_without_an_end_is_stopped_and_counts_as_noticed(tree: Path) -> None:
    path = write_list(tree, ("endless", LINE, "while True: pass"))
    done = run_tool(tree, path, "--timeout-s", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert [mutant["result"] for mutant in json.loads(done.stdout)["mutants"]] == ["timed out"]


def test_a_line_that_is_not_there_ends_it_before_anything_runs(tree: Path) -> None:
    path = write_list(tree, ("gone", "return median(values)", "return 0"), ("gone", LINE, LINE))
    done = run_tool(tree, path)
    assert done.returncode == 2
    assert "gone: expected once in megarl/code.py, found 0 times: return median(values)" in done.stderr
    assert "gone: it changes nothing" in done.stderr
    assert "'gone' is there twice" in done.stderr


def test_tests_that_fail_anyway_prove_nothing(tree: Path) -> None:
    (tree / "megarl" / "code.py").write_text(f"def largest(values):\n    values = [0]\n    {LINE}\n")
    done = run_tool(tree, write_list(tree, ("smallest", LINE, "return min(values)")))
    assert done.returncode == 2
    assert "the tests do not pass without a mutant" in done.stderr


def test_a_mutant_that_is_no_program_proves_nothing(tree: Path) -> None:
    done = run_tool(tree, write_list(tree, ("nonsense", LINE, "return max(")))
    assert done.returncode == 2
    assert "nonsense: pytest ended with 2, the mutant is no program" in done.stderr
