"""Fixtures of the whole suite."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

# Of every library, before any is imported, and of what tests start: two processes of tests are one a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# They start whole runs, make what a killed run leaves, or count what is left: one after the other, as the start of any
# run removes what killed runs have left on the machine.
MACHINE = (
    "e2e/",
    "runtime/test_leftovers.py",
    "cli/test_resumed_session.py",
    "cli/test_session.py",
    "cli/test_session_signals.py",
    "cli/test_report.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `pytest -n 2`: a file stays in one process, which makes its fixtures once; those in `MACHINE` share one.

    (With pytest 9, xdist's own marks for groups have no effect.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].removeprefix("tests/")
            return "machine" if file.startswith(MACHINE) else file

    config.option.loadscopereorder = False  # the whole runs first: they last longest
    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-shaped checkpoint of 4 layers and 128 hidden, made once per session."""
    from make_tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))
