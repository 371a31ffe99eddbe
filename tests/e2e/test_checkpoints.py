"""A real run saves itself beside training: whole checkpoints, also when it is told to stop or loses a writer."""

import signal
from pathlib import Path

import pytest

from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.run_checkpoint import list_checkpoints
from megarl.telemetry.sinks import read_metrics
from tests.e2e.configuration import write_tiny_config
from tests.e2e.interrupting import END_TIMEOUT_S, ENDLESS, START_TIMEOUT_S, check_readable
from tests.e2e.processes import Megarl

EVERY_STEP = ["checkpoint.every_steps=1", "checkpoint.keep_last=1000"]
WRITER = "megarl.checkpoint.writer"


def wait_for_checkpoints(run: Megarl, count: int) -> None:
    directory = run.cwd / "runs" / "latest" / "checkpoints"
    run.wait_for(lambda: len(list_checkpoints(directory)) >= count, START_TIMEOUT_S)


@pytest.mark.slow
def test_a_run_saves_itself_and_stops_saved(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("train", config, ENDLESS, *EVERY_STEP, cwd=tmp_path) as run:
        wait_for_checkpoints(run, 2)
        writers = run.find(WRITER)
        assert len(writers) == 2
        writers[0].kill()  # while it writes or waits: what it writes is lost, and the run goes on
        wait_for_checkpoints(run, 4)
        run.send_signal(signal.SIGUSR1)
        assert run.wait(END_TIMEOUT_S) == 130
        assert run.leftovers() == []
        state = run.directory.read_state()
        last = run.directory.checkpoints / f"step-{state.step:06d}"
        assert (state.status, state.message) == (
            "interrupted",
            f"SIGUSR1: stopped after step {state.step}, saved in {last}",
        )
        assert f"interrupted: {state.message}" in run.text
        check_readable(run)
        found = list_checkpoints(run.directory.checkpoints)
        assert found[-1].path == last
        assert found[-1].manifest.progress == state.progress
        for checkpoint in found:
            checkpoint.verify()
            with open_dist_checkpoint(checkpoint.path, verify=True) as tensors:
                tensors.check_coverage(tensors.tensors)
                assert any(key.startswith("reference.") for key in tensors.tensors)
        names = {path.name for path in run.directory.checkpoints.iterdir()}
        assert names == {checkpoint.path.name for checkpoint in found}
        rows = read_metrics(run.directory.metrics_path)
        assert all((row["timing_s/checkpoint"] or 0) > 0 for row in rows[1:])
        assert "Traceback" not in run.text


@pytest.mark.slow
def test_a_writer_that_stands_still_costs_its_save_only(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("train", config, ENDLESS, *EVERY_STEP, "checkpoint.timeout_s=20", cwd=tmp_path) as run:
        wait_for_checkpoints(run, 1)
        run.find(WRITER)[0].suspend()
        run.wait_for(lambda: "had not written its part after 20 s (checkpoint.timeout_s)" in run.text, 120)
        before = len(list_checkpoints(run.directory.checkpoints))
        wait_for_checkpoints(run, before + 2)
        run.send_signal(signal.SIGTERM)  # which saves, because this run does
        assert run.wait(END_TIMEOUT_S) == 130
        assert run.leftovers() == []
        message = run.directory.read_state().message
        assert message is not None
        assert message.startswith("SIGTERM: stopped after step ")
        assert "The run goes on; the last one is that of step " in run.text


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_saves_at_once(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("train", config, ENDLESS, *EVERY_STEP, cwd=tmp_path) as run:
        wait_for_checkpoints(run, 1)
        run.send_signal(signal.SIGINT)
        assert run.wait(END_TIMEOUT_S) == 130
        assert run.leftovers() == []
        assert run.directory.read_state().message == "stopped by a signal"
        assert list_checkpoints(run.directory.checkpoints)
