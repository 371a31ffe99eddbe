"""`megarl train --run LINK`: the same command begins a run and goes on with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megarl.cli.main import app
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.slurm.job_directory import link_run
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.e2e.configuration import write_tiny_config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, dict[str, Any]]]:
    """What the command would train, instead of training it."""
    calls: list[tuple[RunConfig, dict[str, Any]]] = []

    def run_train(config: RunConfig, **facts: Any) -> int:
        calls.append((config, facts))
        return 0

    monkeypatch.setattr("megarl.cli.train.run_train", run_train)
    return calls


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tiny_config(tmp_path, tiny_model_dir)


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The link of each warm start that the command would make."""
    calls: list[Path | None] = []

    def run_sft(_: RunConfig, *, link: Path | None, **__: Any) -> int:
        calls.append(link)
        return 0

    monkeypatch.setattr("megarl.cli.sft.run_sft", run_sft)
    return calls


def sft(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, ["sft", *arguments]).exception


def train(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, ["train", *arguments]).exception


def again(sources: Sequence[Path], link: Path) -> list[str]:
    return [str(sources[0]), "train.steps=7", "--run", str(link)]


def test_it_begins_where_the_link_leads_nowhere(
    config: Path, tmp_path: Path, started: list[tuple[RunConfig, dict[str, Any]]]
) -> None:
    link = tmp_path / "job" / "run"
    assert train(*again([config], link)) is None
    ((made, facts),) = started
    assert (made.train.steps, facts["link"], facts.get("resumed")) == (7, link, None)


def test_it_goes_on_as_it_was_configured_where_there_is_a_run(
    config: Path, tmp_path: Path, started: list[tuple[RunConfig, dict[str, Any]]]
) -> None:
    link = tmp_path / "job" / "run"
    run = RunDirectory.create(load_config(config, ["train.steps=7"]), source=config, verb="train")
    run.write_state(RunState(status="interrupted"))
    link_run(run.path, link)
    config.unlink()  # what the run needs it has
    assert train(*again([config], link)) is None
    ((made, facts),) = started
    assert (made.train.steps, facts.get("link")) == (7, None)
    assert facts["resumed"].directory == run


def test_a_link_and_a_run_to_go_on_with_are_one_too_many(config: Path, tmp_path: Path) -> None:
    error = train(str(config), "--run", str(tmp_path / "run"), "--resume", "runs/latest")
    assert isinstance(error, ConfigError)
    assert "leave out --resume" in str(error)


def test_a_warm_start_begins_anew_until_one_is_finished(
    config: Path, tmp_path: Path, warmed: list[Path | None]
) -> None:
    link = tmp_path / "warm"
    assert sft(str(config), "--run", str(link)) is None
    assert warmed == [link]
    run = RunDirectory.create(load_config(config), source=config, verb="sft")
    link_run(run.path, link)
    refused = sft(str(config), "--run", str(link))
    assert isinstance(refused, ConfigError)
    assert "is still running; stop it first" in str(refused)
    for status, calls in (("failed", 2), ("interrupted", 3), ("finished", 3)):
        run.write_state(RunState(status=status))  # type: ignore[arg-type]
        assert sft(str(config), "--run", str(link)) is None
        assert len(warmed) == calls


def test_a_warm_start_takes_no_link_to_something_else(config: Path, tmp_path: Path, warmed: list[Path | None]) -> None:
    refused = sft(str(config), "--run", str(tmp_path))
    assert isinstance(refused, ConfigError)
    assert "is no run directory" in str(refused)
    assert warmed == []


def test_a_run_and_its_link_may_be_moved_together(tmp_path: Path) -> None:
    run, link = tmp_path / "before" / "runs" / "one", tmp_path / "before" / "job" / "run"
    run.mkdir(parents=True)
    link_run(run, link)
    (tmp_path / "before").rename(tmp_path / "after")
    assert (tmp_path / "after" / "job" / "run").resolve() == tmp_path / "after" / "runs" / "one"
    assert (tmp_path / "after" / "runs" / "one" / "job").resolve() == tmp_path / "after" / "job"
