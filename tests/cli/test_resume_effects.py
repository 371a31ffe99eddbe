"""What going on does to the files of a run."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.cli.resume import Arguments, resume
from megarl.config.loader import load_config
from megarl.controller.progress import RunProgress
from megarl.telemetry import run_directory
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunState
from tests.checkpoint.manifests import FILE
from tests.cli.resumable_runs import go_on, make_run, refusal, save, write_driver
from tests.telemetry.runs import make_row, write_metrics


def test_it_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run.metrics_path, [make_row(step) for step in range(1, 7)])
    size = len("".join(line + "\n" for line in run.metrics_path.read_text().splitlines()[:4]))
    config = load_config(run.config_path)
    save(run, 4, config, telemetry={"bytes": {"metrics.jsonl": size, "updates.jsonl": 7}})
    loaded, going = resume(run.path, Arguments(config=None, overrides=("train.steps=60",), allowed=()))
    assert run.read_state().status == "interrupted"  # nothing was touched yet
    directory = going.open(loaded, sources=[])
    assert directory.path == run.path
    assert run.read_state() == RunState(
        status="running", step=4, progress=RunProgress(step=4, policy_version=4).state_dict()
    )
    assert going.cut_back() == [
        "cut    metrics.jsonl: 2 rows beyond step 4",
        "warning: updates.jsonl has 0 bytes of the steps up to 4, but had 7 when the checkpoint was written: it was "
        "edited, or rows were lost with the machine",
    ]
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2, 3, 4]
    assert run.read_versions()["went_on"][0]["changes"] == ["train.steps: 30 -> 60"]


def test_going_on_that_was_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any of its writes, three times in a row: nothing has to be said twice, and nothing is lost."""
    finished = 0
    for killed_after in range(8):
        run = make_run(tmp_path / str(killed_after), 4)
        first = load_config(run.config_path)
        arguments = Arguments(config=None, overrides=("policy.optimizer.lr=1e-3",), allowed=("policy.optimizer.lr",))
        for attempt in range(3):
            config, going = resume(run.path, arguments if attempt == 0 else Arguments.of(None, [], []))
            writes = 0

            def write(path: Path, text: str, limit: int = killed_after) -> None:
                nonlocal writes
                if writes == limit:
                    raise KeyboardInterrupt
                writes += 1
                write_text_atomically(path, text)

            with monkeypatch.context() as patched:
                patched.setattr(run_directory, "write_text_atomically", write)
                with suppress(KeyboardInterrupt):
                    going.open(config, sources=[])
                    finished += attempt == 0
            write_driver(run, replace(ProcessMark.of(os.getpid()), started=1))
        config, going = resume(run.path, Arguments.of(None, [], []))
        going.open(config, sources=[])
        assert run.read_state().step == 4
        taken = config.policy.optimizer.lr == 1e-3
        assert load_config(run.config_path) == config
        kept = [load_config(path) for path in run.path.glob("config.step-*")]
        assert kept == ([first] if taken else [])
        assert taken == (killed_after >= 4)  # state, versions, the old configuration, the new one
        assert not list(run.path.glob("*.partial"))
    assert finished == 4


def test_a_file_that_was_cut_short_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, 4, 8)
    file = run.checkpoints / "step-000008" / FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert go_on(run.path).step == 4
    assert f"passed over: {run.checkpoints / 'step-000008'} is damaged: {file.name}: expected" in caplog.text
    assert f"{file.name}: expected" in refusal(run.checkpoints / "step-000008")


def ask(*arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "megarl.cli.main", "train", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.replace("\n", " ")


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    code, said = ask("--resume", str(run.path), "train.seed=1", cwd=tmp_path)
    assert code == 2
    assert "train.seed: 0 -> 1: the run would go on as another one" in said
    assert ask(cwd=tmp_path) == (
        2,
        "megarl train: expected a CONFIG file or --resume RUN; e.g. megarl train configs/quickstart.toml ",
    )
    code, said = ask("x.toml", "--allow-change", "train.seed", cwd=tmp_path)
    assert (code, "nothing to change without --resume RUN" in said) == (2, True)
