"""Fixtures of the whole suite."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent / "tools"))

# They start whole runs, make what a killed run leaves, or count what is left: one after the other, since the start of any
# run removes what killed runs have left on the machine.
MACHINE = ("e2e/", "runtime/test_leftovers.py", "cli/test_session.py", "cli/test_session_signals.py", "cli/test_report.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n 2`: a file stays in one process, which makes its fixtures once; those in `MACHINE` share one."""
    for item in items:
        file = item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group("machine" if file.startswith(MACHINE) else file.replace("/", ".")))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-shaped checkpoint of 4 layers and 128 hidden, made once per session."""
    from make_tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))
