"""One run, looked at while it goes on, then interrupted.

Every socket on which it listens is in README, with the interface it is really on; none is reachable from outside. Its
secrets are in no command line and no file of it. A SIGINT ends it in order. The tests run in file order.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.interrupting import interrupt, start_training, wait_for_steps
from tests.e2e.processes import Megarl
from tests.e2e.sockets import Listening, Row, list_sockets, read_rows, unnamed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Megarl]:
    """Training, two policy ranks and an engine of two workers; each of the two steps so far published weights."""
    with start_training(tmp_path_factory.mktemp("running"), tiny_model_dir, "rollout.tensor=2") as megarl:
        wait_for_steps(megarl)
        yield megarl


def written(run: Megarl) -> dict[Path, bytes]:
    """What the run's files hold now; one that is renamed or removed meanwhile is passed over."""
    contents = {}
    for folder, _, names in os.walk(run.directory.path):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                contents[path] = path.read_bytes()
    return contents


def test_every_socket_is_in_readme(run: Megarl) -> None:
    sockets = list_sockets(run.alive())
    for socket in sockets:
        print(socket)
    rows = read_rows()
    assert len({socket.process for socket in sockets}) > 5
    assert unnamed(sockets, rows) == []
    stale = [row for row in rows if not any(row.names(socket) for socket in sockets)]
    assert stale == []


def test_nothing_is_reachable_from_outside(run: Megarl) -> None:
    assert {socket.address for socket in list_sockets(run.alive()) if socket.kind != "unix"} == {"127.0.0.1"}


def test_the_token_is_in_environments_only(run: Megarl) -> None:
    """Ray's processes have it, of this run and not of the person; no command line and no file of the run has."""
    tokens = set()
    for process in run.alive():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            assert variables.get("RAY_AUTH_MODE", "token") == "token"
            tokens.add(variables.get("RAY_AUTH_TOKEN"))
    (token,) = tokens - {None}
    assert len(token) == 64
    assert token != os.environ.get("RAY_AUTH_TOKEN")
    assert not any(token in " ".join(process.cmdline()) for process in run.alive())
    files = written(run)
    assert files
    assert not [path for path, content in files.items() if token.encode() in content]


def test_a_signal_ends_the_run_in_order(run: Megarl) -> None:
    interrupt(run, signal.SIGINT)


def test_a_socket_that_readme_does_not_name_is_found() -> None:
    rows = [Row("tcp", ("gcs_server",), "127.0.0.1"), Row("unix", ("raylet",), "/sockets/")]
    named = [Listening("/x/gcs_server --y", "tcp", "127.0.0.1"), Listening("raylet", "unix", "/tmp/sockets/raylet")]
    others = [
        Listening("/x/gcs_server --y", "tcp", "0.0.0.0"),
        Listening("/x/gcs_server --y", "udp", "127.0.0.1"),
        Listening("ray::Stranger", "tcp", "127.0.0.1"),
        Listening("raylet", "unix", "/tmp/elsewhere"),
    ]
    assert unnamed([*named, *others], rows) == others
